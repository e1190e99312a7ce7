"""Tokens per second of one whole training step on a CPU: Luthier against TRL's SFTTrainer, on the same rows.

    python benchmarks/cpu_vs_trl.py                          # LoRA and full: about 8 minutes on two idle cores
    python benchmarks/cpu_vs_trl.py --data rows.jsonl --json result.json

The model has SmolLM2-135M's shape with random weights; rows have GSM8K-like lengths from a seeded generator, or
come from `--data` (a line: `{"input_ids": [...], "completion_mask": [...]}`). Only completions are trained.
One process per tool stays alive; TRL's settings are swept first and its fastest is used; then both tools take turns
(A B B A ...) so that a drift of the machine meets both. Only real tokens are counted, padding never is. A step is
forward, backward, gradient clipping, AdamW (fused) and the learning-rate schedule. Both get glibc's memory
thresholds: Luthier through mallopt, TRL through the environment variables.

Tracks: `fp32`, and `bf16` where the CPU computes it natively. In the bf16 track TRL may use autocast over fp32
weights or bf16 weights, whichever is faster; Luthier uses bf16 weights with fp32 masters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "rope_theta": 100000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
RATES = {"lora": 2e-4, "full": 2e-5}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


@dataclass(frozen=True)
class Row:
    ids: list[int]
    completion: list[int]
    """1 where the token is trained."""


def make_rows(count: int, seed: int) -> list[Row]:
    """Lengths like GSM8K rows in SmolLM2's template: about 90 tokens of prompt and 140 of answer, wide spread."""
    chooser = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = 35 + round(chooser.lognormvariate(3.95, 0.35))
        answer = 10 + round(chooser.lognormvariate(4.75, 0.45))
        prompt, answer = min(prompt, 300), min(answer, 700)
        ids = [chooser.randrange(20, SHAPE["vocab_size"]) for _ in range(prompt + answer)]
        rows.append(Row(ids, [0] * prompt + [1] * answer))
    return rows


def read_rows(path: Path | None, count: int, seed: int) -> list[Row]:
    if path is None:
        return make_rows(count, seed)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [Row(line["input_ids"], line["completion_mask"]) for line in lines][:count]


def make_model(dtype: str):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(getattr(torch, dtype))


# ---------------------------------------------------------------- workers: one process per tool and method


def worker(tool: str, method: str, rows: list[Row], tokens_per_step: int) -> None:
    """Answer `{"setting": ..., "dtype": ..., "steps": n}` lines with `{"tokens", "seconds", "losses"}` lines."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to stderr
    measure = {"luthier": measure_luthier, "trl": measure_trl}[tool]
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = measure(method, rows, tokens_per_step, **order)
        except Exception as error:  # noqa: BLE001  a setting that fails loses the sweep, with its reason
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def measure_luthier(
    method: str, rows: list[Row], tokens_per_step: int, *, setting: str, dtype: str, steps: int
) -> dict:
    import torch

    from luthier.data.batch import collate
    from luthier.data.pack import pack
    from luthier.data.types import Example, RowRef
    from luthier.model.adapters import apply_method
    from luthier.recipe.load import recipe_from_dict
    from luthier.runtime.device import set_threads
    from luthier.train.feed import MicroBatch
    from luthier.train.processes import make_accelerator
    from luthier.train.setup import make_trainer
    from luthier.train.step import update

    set_threads()
    recipe = recipe_from_dict(
        {
            "model": {"name_or_path": "random"}, "data": {"train": [{"path": "none"}]},
            "method": {"name": method, **(LORA if method == "lora" else {})},
            "train": {"learning_rate": RATES[method], "max_steps": steps + 1, "gradient_checkpointing": False},
            "output_dir": "none",
        },
        origin="benchmark",
    )  # fmt: skip
    model = apply_method(make_model(dtype), recipe.method, seed=0).model
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir=tempfile.gettempdir())
    trainer = make_trainer(accelerator, model, recipe, total_steps=steps + 1)
    examples = [
        Example(ids=row.ids, weights=[0.0, *map(float, row.completion[1:])], ref=RowRef("rows", n))
        for n, row in enumerate(rows, 1)
    ]
    packs = pack([len(example) for example in examples], tokens_per_step)
    random.Random(0).shuffle(packs)
    ends, counts, losses = [], [], []
    for step in range(steps + 1):
        documents = tuple(examples[index] for index in packs[step % len(packs)].examples)
        result = update(
            trainer, [MicroBatch(0, collate(documents), documents)], step=step, stop_requested=lambda: False
        )
        ends.append(time.perf_counter())
        counts.append(result.tokens)
        losses.append(result.loss)
    trainer.weights.close()
    trainer.engine.detach()
    report = [f"{part.name}: {part.runs}" for part in trainer.engine.report]
    return {"tokens": sum(counts[1:]), "seconds": ends[-1] - ends[0], "losses": losses, "report": report}


TRL_SETTINGS = ("padded", "grouped", "packed")


def measure_trl(method: str, rows: list[Row], tokens_per_step: int, *, setting: str, dtype: str, steps: int) -> dict:
    """`setting`: layout (padded rows, rows grouped by length, packed best-fit), and `+autocast` for bf16 over fp32."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from luthier.runtime.device import set_threads
    from tests.support.tiny import tiny_tokenizer

    set_threads()
    layout, _, precision = setting.partition("+")
    mean = sum(len(row.ids) for row in rows) / len(rows)
    dataset = Dataset.from_list([{"input_ids": row.ids, "completion_mask": row.completion} for row in rows])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args, **_kwargs):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=steps + 1, learning_rate=RATES[method], lr_scheduler_type="cosine",
            per_device_train_batch_size=1 if layout == "packed" else max(1, round(tokens_per_step / mean)),
            packing=layout == "packed", max_length=tokens_per_step if layout == "packed" else None,
            train_sampling_strategy="group_by_length" if layout == "grouped" else "random",
            use_cpu=True, bf16=precision == "autocast", fp16=False, gradient_checkpointing=False,
            completion_only_loss=True, dataloader_pin_memory=False, report_to=[], save_strategy="no",
            logging_steps=10_000, max_grad_norm=1.0, optim="adamw_torch_fused", disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = SFTTrainer(
            make_model("float32" if precision == "autocast" else dtype), args=config, train_dataset=dataset,
            processing_class=tiny_tokenizer(), callbacks=[Clock()],
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if method == "lora" else None,
        )  # fmt: skip
        counts: list[int] = []
        collate = trainer.data_collator

        def counting(features):
            batch = collate(features)
            mask = batch.get("attention_mask")
            counts.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
            return batch

        trainer.data_collator = counting
        trainer.train()
    types = sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad})
    real = counts[1 : steps + 1]  # batch i is the i-th one collated, whatever was fetched ahead
    assert torch.tensor(real).numel() == steps
    return {"tokens": sum(real), "seconds": ends[-1] - ends[0], "trained_types": types}


# ---------------------------------------------------------------- parent: sweep, turns, table


class Tool:
    """A worker process to which orders are sent."""

    def __init__(self, name: str, method: str, arguments: list[str]) -> None:
        environment = {**os.environ, **(MALLOC if name == "trl" else {}), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, "--method", method, *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def run(self, **order) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if "error" not in reply:
            reply["rate"] = reply["tokens"] / reply["seconds"]
        return reply

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def candidates(dtype: str, best_layout: str | None) -> list[str]:
    if dtype == "float32":
        return list(TRL_SETTINGS)
    return [best_layout, f"{best_layout}+autocast"]


def compare(method: str, dtypes: list[str], options: argparse.Namespace, arguments: list[str]) -> list[dict]:
    ours, peer = Tool("luthier", method, arguments), Tool("trl", method, arguments)
    results, best_layout = [], None
    for dtype in dtypes:
        sweep = {s: peer.run(setting=s, dtype=dtype, steps=options.sweep_steps) for s in candidates(dtype, best_layout)}
        rates = {setting: reply["rate"] for setting, reply in sweep.items() if "rate" in reply}
        for setting, reply in sweep.items():
            say(
                f"  {method} {dtype} TRL {setting}: "
                + (f"{reply['rate']:.0f} tokens/s" if "rate" in reply else reply["error"])
            )
        best = max(rates, key=rates.get)
        best_layout = best_layout or best
        turns: dict[str, list[dict]] = {"luthier": [], "trl": []}
        for turn in range(options.repeats):
            order = [("luthier", ours, "packed"), ("trl", peer, best)]
            for name, tool, setting in order if turn % 2 == 0 else reversed(order):
                turns[name].append(tool.run(setting=setting, dtype=dtype, steps=options.steps))
                say(f"  {method} {dtype} {name}: {turns[name][-1].get('rate', 0):.0f} tokens/s")
        for replies in turns.values():
            if failed := next((reply["error"] for reply in replies if "error" in reply), None):
                raise SystemExit(f"{method} {dtype}: {failed}")
        middle = {name: statistics.median(reply["rate"] for reply in replies) for name, replies in turns.items()}
        results.append({
            "method": method, "dtype": dtype, "trl_setting": best, "trl_sweep": sweep, "turns": turns,
            "luthier": middle["luthier"], "trl": middle["trl"], "ratio": middle["luthier"] / middle["trl"],
        })  # fmt: skip
    ours.close()
    peer.close()
    return results


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: list[dict]) -> str:
    lines = ["| training | type | TRL setting | TRL tokens/s | Luthier tokens/s | ratio |", "|---|---|---|---|---|---|"]
    for r in results:
        cells = [r["method"], r["dtype"], r["trl_setting"]]
        for name in ("trl", "luthier"):
            rates = [turn["rate"] for turn in r["turns"][name]]
            cells.append(f"{r[name]:.0f} ({min(rates):.0f}-{max(rates):.0f})")
        lines.append(f"| {' | '.join(cells)} | {r['ratio']:.2f}x |")
    return "\n".join(lines)


def machine() -> dict:
    import torch

    from luthier.runtime.device import pick_device, set_threads

    device = pick_device()
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    return {
        "cpu": model, "threads": set_threads()[0], "native_bf16": device.native_bf16, "load": os.getloadavg()[0],
        "python": platform.python_version(), "versions": {name: version(name) for name in packages},
        "capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="jsonl with input_ids and completion_mask")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--tokens-per-step", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn (after one that is not timed)")
    parser.add_argument("--sweep-steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--dtypes", default="auto", help="float32,bfloat16; auto: bfloat16 only where it is native")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer for a quick try")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    SHAPE["num_hidden_layers"] = options.layers
    if options.worker:
        worker(options.worker, options.method, read_rows(options.data, options.rows, 0), options.tokens_per_step)
        return
    facts = machine()
    dtypes = options.dtypes.split(",")
    if options.dtypes == "auto":
        dtypes = ["float32", "bfloat16"] if facts["native_bf16"] else ["float32"]
    arguments = ["--rows", str(options.rows), "--tokens-per-step", str(options.tokens_per_step)]
    arguments += ["--layers", str(options.layers)]
    arguments += ["--data", str(options.data.resolve())] if options.data else []
    results = [r for method in options.methods.split(",") for r in compare(method, dtypes, options, arguments)]
    print(table(results))
    document = {"machine": facts, "options": {k: str(v) for k, v in vars(options).items()}, "results": results}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(json.dumps({"machine": facts, "ratios": {f"{r['method']} {r['dtype']}": r["ratio"] for r in results}}))


if __name__ == "__main__":
    main()
