"""Forward and backward on a CPU: the engine with its replaced layers against the same engine without.

    python benchmarks/cpu_engine.py

SmolLM2-135M's shape with 6 layers, 1,024 tokens in five documents, random weights; the two engines take turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch

from luthier.data.batch import Batch, collate
from luthier.data.types import Example, RowRef
from luthier.fast.engine import Engine, attach
from luthier.fast.settings import EngineSettings

SETTINGS = {"plain layers": EngineSettings(replace_layers=False), "replaced layers": EngineSettings()}


def model(method: str, dtype: torch.dtype, layers: int) -> Any:
    """SmolLM2-135M's shape."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    made = LlamaForCausalLM(config).to(dtype)
    if method == "lora":
        made = get_peft_model(made, LoraConfig(r=16, target_modules="all-linear"), autocast_adapter_dtype=False)
    return made.train()


def documents() -> Batch:
    """1,024 tokens, 60% of them trained."""
    chooser = random.Random(0)
    examples = []
    for length in (250, 180, 300, 120, 174):
        ids = [chooser.randrange(3, 49000) for _ in range(length)]
        weights = [0.0] + [float(place > length * 0.4) for place in range(length - 1)]
        examples.append(Example(ids=ids, weights=weights, ref=RowRef("benchmark", 1)))
    return collate(examples)


def seconds(engine: Engine, batch: Batch) -> float:
    """Of one forward and backward pass."""
    started = time.perf_counter()
    engine.loss(batch).loss.backward()
    passed = time.perf_counter() - started
    engine.module.zero_grad(set_to_none=True)
    return passed


def main() -> None:
    """Print a row for each dtype and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    batch = documents()
    print(f"| dtype | method | {' | '.join(f'{name}, tokens/s' for name in SETTINGS)} | ratio |")
    print("|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for method in ("lora", "full"):
            engines = {name: attach(model(method, dtype, asked.layers), each) for name, each in SETTINGS.items()}
            times: dict[str, list[float]] = {name: [] for name in engines}
            for turn in range(1 + asked.repeats):
                for name, engine in engines.items():
                    passed = seconds(engine, batch)
                    if turn:  # the first pass allocates
                        times[name].append(passed)
            rates = [batch.tokens / statistics.median(each) for each in times.values()]
            shown = " | ".join(f"{rate:,.0f}" for rate in rates)
            ratio = f"{rates[1] / rates[0]:.2f}"
            print(f"| {str(dtype).removeprefix('torch.')} | {method} | {shown} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
