"""DPO on pairs: prompts computed once, against our own path with a copy for each answer, against TRL. JSON lines.

    python benchmarks/gpu/preference.py --model smol135m                 # all ratios, all ways, one process each
    python benchmarks/gpu/preference.py --model llama8b --pairs 8 --ratios 1:1 4:1
    python benchmarks/gpu/preference.py --quick                          # a check on a CPU, seconds

Random weights of the true shapes, the same pairs for every way: `--length` tokens of prompt and answer, split by the
ratio, each a quarter more or less. One step is `--pairs` pairs in one micro-batch. `reference` is timed by itself.

    shared     luthier, answers share their prompt
    unshared   luthier, each answer behind its own copy (a row whose prompt is its first token)
    trl        TRL's DPOTrainer with a precomputed reference, sdpa, no recompute; where it can be imported

A line a way and ratio: `pairs_s`, `tok_s` (of p + c + r a pair, whatever a way computes), `ms_step` (median),
`peak_gib`, `reference_s`, losses of the first and the last step; at the end, per ratio, `max_logp_difference` between
ways over the answers of the first pairs (nats, summed over an answer) and `speed` relative to `unshared`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from benchmarks.gpu.models import SHAPES  # noqa: E402

WAYS = ("shared", "unshared", "trl")
COMPARED = 16
"""Pairs whose log-probabilities every way reports."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags; `--quick` shrinks everything to seconds on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol135m", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="fewer decoder layers")
    parser.add_argument("--method", default="lora", choices=["lora", "full"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--ratios", nargs="+", default=["1:3", "1:1", "4:1"], help="tokens of prompt : of an answer")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--length", type=int, default=512, help="mean tokens of prompt and answer")
    parser.add_argument("--pairs", type=int, default=16, help="of a step")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", help="default: bfloat16 on cuda, float32 on a CPU")
    parser.add_argument("--cap", type=float, default=300.0, help="seconds of a process")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="append the lines here too")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "RATIO"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.device, options.length = "tiny", "cpu", min(options.length, 48)
        options.pairs, options.warmup, options.steps = 4, 1, 2
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    return options


def make_pairs(count: int, ratio: str, *, length: int, vocab_size: int, seed: int = 0) -> list[Any]:
    """Rows of random ids, the same for every way."""
    from luthier.data.types import Branched, RowRef

    chooser = random.Random(f"{seed} {ratio}")
    prompt, answer = (float(part) for part in ratio.split(":"))
    means = [length * prompt / (prompt + answer), *[length * answer / (prompt + answer)] * 2]
    rows = []
    for place in range(count):
        sizes = [max(2, round(mean * chooser.uniform(0.75, 1.25))) for mean in means]
        ids = [[4 + int((vocab_size - 5) * chooser.random() ** 3) for _ in range(size)] for size in sizes]
        weights = [[1.0] * len(part) for part in ids[1:]]
        rows.append(Branched(prompt=ids[0], answers=ids[1:], weights=weights, ref=RowRef("random", place + 1)))
    return rows


def with_copies(row: Any) -> Any:
    """The same pair with all of the prompt but its first token in front of each answer, as context."""
    from dataclasses import replace

    lead = list(row.prompt[1:])
    return replace(
        row, prompt=row.prompt[:1], answers=[[*lead, *answer] for answer in row.answers],
        weights=[[0.0] * len(lead) + list(weights) for weights in row.weights],
    )  # fmt: skip


def median(values: list[float]) -> float:
    """Upper median."""
    return sorted(values)[len(values) // 2]


def load(options: argparse.Namespace) -> Any:
    """Base with its adapters, the same in every process."""
    from benchmarks.gpu.models import random_model, shape
    from luthier.model.adapters import apply_method
    from luthier.recipe.schema import MethodSection

    kind, settings = shape(options.model, layers=options.layers)
    model = random_model(kind, settings, device=options.device, dtype=options.dtype)
    method: dict[str, Any] = {"name": options.method}
    if options.method == "lora":
        method |= {"r": options.rank, "lora_alpha": float(options.rank)}
    return apply_method(model, MethodSection(**method), seed=0).model, method, settings["vocab_size"]


def run_ours(options: argparse.Namespace, way: str, ratio: str) -> dict[str, Any]:
    """Reference, then steps, through the trainer of a run."""
    from benchmarks.gpu import trainers
    from benchmarks.gpu.clock import Clock
    from benchmarks.gpu.steps import Steps
    from luthier.data.pack import one_by_one
    from luthier.train.processes import make_accelerator
    from luthier.train.reference import with_reference

    clock = Clock(options.device)
    model, method, vocab_size = load(options)
    total = options.warmup + options.steps
    plain = make_pairs(total * options.pairs, ratio, length=options.length, vocab_size=vocab_size)
    rows = plain if way == "shared" else [with_copies(row) for row in plain]
    recipe = trainers.make_recipe(
        method=method, sequences=options.pairs, max_steps=total, max_length=2 * options.length,
        objective={"name": "dpo", "beta": 0.1}, train={"learning_rate": 1e-5, "shuffle": False},
    )  # fmt: skip
    accelerator = make_accelerator(next(model.parameters()).device, report_to=[], logging_dir="none")
    trainer = trainers.make("fast", accelerator, model, recipe, total_steps=total)
    clock.reset_peak()
    clock.wait()
    started = time.perf_counter()
    found = with_reference(trainer, rows, [], cache=None, steps=list, max_length=2 * options.length)
    clock.wait()
    reference = time.perf_counter() - started
    steps = Steps(
        trainer, accelerator, recipe, examples=found.train, packs=one_by_one([len(row) for row in rows])
    )  # fmt: skip
    seconds, losses = [], []
    for _ in range(total):
        clock.wait()
        started = time.perf_counter()
        losses.append(steps.take().loss)
        clock.wait()
        seconds.append(time.perf_counter() - started)
    steps.close()
    logps = [value for row in found.train[:COMPARED] for value in row.reference or ()]
    return {
        "seconds": seconds, "losses": losses, "reference_s": reference, "logps": logps, "peak_gib": clock.peak_gib()[0],
        "layout": trainer.engine.layout,
    }  # fmt: skip


def run_trl(options: argparse.Namespace, ratio: str) -> dict[str, Any]:
    """TRL's trainer over the same model and pairs, tokenised already."""
    from dataclasses import fields

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from benchmarks.gpu.clock import Clock

    clock = Clock(options.device)
    model, _, vocab_size = load(options)
    total = options.warmup + options.steps
    rows = make_pairs(total * options.pairs, ratio, length=options.length, vocab_size=vocab_size)
    columns = {"prompt": [list(row.prompt) for row in rows]}
    columns |= {name: [list(row.answers[side]) for row in rows] for side, name in enumerate(("chosen", "rejected"))}
    # Both spellings of the columns: versions differ.
    named = {f"{name}_{end}": value for name, value in columns.items() for end in ("ids", "input_ids")}

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    class Times(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.wait()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.wait()
            self.seconds.append(time.perf_counter() - self.started)

    wanted = {
        "output_dir": tempfile.mkdtemp(), "bf16": False, "fp16": False,
        "use_cpu": options.device == "cpu", "gradient_checkpointing": False,
        "per_device_train_batch_size": options.pairs, "gradient_accumulation_steps": 1, "max_steps": total,
        "learning_rate": 1e-5, "lr_scheduler_type": "constant", "warmup_steps": 0, "optim": "adamw_torch_fused",
        "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "beta": 0.1, "max_length": 4 * options.length, "max_prompt_length": None, "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": options.pairs, "disable_tqdm": True, "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": options.device == "cuda", "remove_unused_columns": False,
    }  # fmt: skip
    known = {field.name for field in fields(DPOConfig)}
    times = Times()
    clock.reset_peak()
    started = time.perf_counter()
    trainer = Prepared(
        model=model, args=DPOConfig(**{key: value for key, value in wanted.items() if key in known}),
        train_dataset=Dataset.from_dict(named), processing_class=_tokenizer(vocab_size), callbacks=[times],
    )  # fmt: skip
    trainer.get_train_dataloader()  # some versions compute the reference here
    clock.wait()
    reference = time.perf_counter() - started
    trainer.train()
    data = trainer.train_dataset
    pairs = zip(data["ref_chosen_logps"][:COMPARED], data["ref_rejected_logps"][:COMPARED], strict=True)
    return {
        "seconds": times.seconds, "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "reference_s": reference, "logps": [float(value) for pair in pairs for value in pair],
        "peak_gib": clock.peak_gib()[0], "layout": "padded",
    }  # fmt: skip


def _tokenizer(vocab_size: int) -> Any:
    """The trainer asks for one; the rows are tokenised already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(vocab_size)}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w3"
    )  # fmt: skip


def child(options: argparse.Namespace) -> None:
    """One way and ratio; the last line of the output is the result."""
    from benchmarks.gpu.machine import machine

    way, ratio = options.child
    vocab_size = SHAPES[options.model][1]["vocab_size"]
    found = run_trl(options, ratio) if way == "trl" else run_ours(options, way, ratio)
    total = options.warmup + options.steps
    rows = make_pairs(total * options.pairs, ratio, length=options.length, vocab_size=vocab_size)
    timed = rows[options.warmup * options.pairs :]
    seconds = found.pop("seconds")[options.warmup :]
    losses = found.pop("losses")
    result = {
        "way": way, "ratio": ratio, "model": options.model, "method": options.method, "dtype": options.dtype,
        "pairs": options.pairs, "steps": len(seconds), "tokens_step": sum(map(len, timed)) / options.steps,
        "pairs_s": len(timed) / sum(seconds), "tok_s": sum(map(len, timed)) / sum(seconds),
        "ms_step": 1e3 * median(seconds), "loss_first": losses[0], "loss_last": losses[-1], **found,
        "machine": machine(options.device),
    }  # fmt: skip
    print("RESULT " + json.dumps(result), flush=True)


def main(options: argparse.Namespace) -> None:
    """Every way and ratio in a process of its own; then what the ways have in common."""
    for ratio in options.ratios:
        found = {way: outcome for way in options.ways if (outcome := _run_child(options, way, ratio)) is not None}
        for way, result in found.items():
            _write(options, {key: value for key, value in result.items() if key != "logps"} | {"way": way})
        summary: dict[str, Any] = {"ratio": ratio, "summary": True}
        ways = [way for way in found if found[way].get("logps")]
        for first, second in ((a, b) for i, a in enumerate(ways) for b in ways[i + 1 :]):
            apart = [abs(a - b) for a, b in zip(found[first]["logps"], found[second]["logps"], strict=True)]
            summary[f"max_logp_difference {first}, {second}"] = max(apart)
        if "unshared" in found and "pairs_s" in found["unshared"]:
            base = found["unshared"]["pairs_s"]
            summary["speed"] = {way: result["pairs_s"] / base for way, result in found.items() if "pairs_s" in result}
        _write(options, summary)


def _run_child(options: argparse.Namespace, way: str, ratio: str) -> dict[str, Any] | None:
    """The result of one process, or what went wrong in it."""
    passed = sys.argv[1:]
    environment = dict(os.environ)
    site = environment.get("SITE")
    if way == "trl" and site:  # the peers' own libraries on a box without a registry
        environment["PYTHONPATH"] = os.pathsep.join([f"{site}/trl", environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).resolve()), *passed, "--child", way, ratio]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.cap, check=False
        )
    except subprocess.TimeoutExpired:
        return {"way": way, "ratio": ratio, "error": f"more than {options.cap:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
        return result
    tail = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {"way": way, "ratio": ratio, "error": f"exit {done.returncode}: {tail[:300]}"}


def _write(options: argparse.Namespace, line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    out = options.out or (Path(os.environ["OUT"]) / "preference.jsonl" if os.environ.get("OUT") else None)
    if out is not None:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    chosen = parse()
    child(chosen) if chosen.child else main(chosen)
