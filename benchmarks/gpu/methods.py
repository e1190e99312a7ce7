"""Full, LoRA, QLoRA, Spectrum and random layers on GSM8K at one token budget, with SmolLM2-135M-Instruct.

    . benchmarks/gpu/setup_box.sh && python3 benchmarks/gpu/methods.py --budget 500      # on the GPU box
    python benchmarks/gpu/methods.py --quick                                             # here: does it run at all?

Every method sees the same packs of the training rows in the same order, for `--epochs`, with each of its learning
rates (`method_variants.py`). The rate is chosen by the loss on rows held out of the training file; what is reported is
measured on `test.jsonl`, which no choice has seen: loss of the references, and greedy answers scored by the library's
own task (`number`: the last number of the answer is right; `strict`: after `####`).

Order: the untouched model is scored first, which also tells how long scoring takes; then all methods with their first
rate, all with their second, and so on, while the budget leaves room to score each method once; then the best rate of
each method is scored. A rate at the end of its grid is marked, for a better one may lie beyond.

Data: `train.jsonl` and `test.jsonl` in `--data`, else the first of $SITE/data, .gpu/data, ../shared/data/gsm8k that
has them. JSON lines (`kind`: base, run, result, comparison, skipped) go to `--out`, default $OUT/methods.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder: its `kernels.py` is also a package's name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

MORE_FOR_ADAPTERS = 2.0
"""Adapters that are not merged about double the kernels of a token."""


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and test.jsonl: question, answer")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--only", default="", help="regular expression over names of methods")
    parser.add_argument("--adapters", action="store_true", help="also LoRA+ and the starts PiSSA and OLoRA")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--tokens", type=int, default=8192, help="of a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rates", type=int, default=3, help="learning rates tried of each method, at most")
    parser.add_argument("--rows", type=int, default=660, help="test rows")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=660, help="answers generated at once")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows and of adapters")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds; runs are begun only if they fit")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "methods.jsonl")
    parser.add_argument("--quick", action="store_true", help="a few steps and rows, on the CPU")
    options = parser.parse_args()
    options.limit = None
    if options.quick:
        options.tokens, options.max_length, options.rows, options.limit = 512, 256, 4, 60
        options.max_new_tokens, options.rates, options.epochs, options.batch_size = 8, 2, 0.1, 4
    return options


def data_folder(options: argparse.Namespace) -> Path:
    """Where both files are."""
    places = [Path(os.environ.get("SITE", "site")) / "data", Path(".gpu/data"), Path("../shared/data/gsm8k")]
    for place in [options.data] if options.data else places:
        if all((place / name).is_file() for name in ("train.jsonl", "test.jsonl")):
            return place
    raise SystemExit("train.jsonl and test.jsonl are in none of " + ", ".join(map(str, places)))


@dataclass
class World:
    """What all runs share."""

    options: argparse.Namespace
    folder: Path
    device: Any
    tokenizer: Any
    prepared: Any
    tasks: Any
    started: float
    facts: dict[str, Any]
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By method: the run with the lowest validation loss, with its trained tensors."""

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return float(self.options.budget - (time.time() - self.started))

    def write(self, **line: Any) -> None:
        """One line of the result."""
        with self.options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**line, **self.facts}) + "\n")


def make_world(options: argparse.Namespace, started: float) -> World:
    """Model folder, rows, tasks."""
    from benchmarks.gpu.machine import machine
    from luthier.data.prepare import prepare
    from luthier.evaluate.tasks import load_tasks
    from luthier.model.locate import locate_model
    from luthier.model.tokenizer import load_tokenizer
    from luthier.recipe.schema import DataSection, ModelSection, Source, TaskSpec, ValidationSection
    from luthier.runtime.device import pick_device, set_threads

    folder, data = locate_model(options.model), data_folder(options)
    device = pick_device()
    set_threads()
    columns = {"user": "question", "assistant": "answer"}
    source = Source(path=str(data / "train.jsonl"), map=columns, limit=options.limit)
    section = DataSection(
        train=[source], validation=ValidationSection(fraction=0.2 if options.quick else 0.04),
        max_length=options.max_length,
    )  # fmt: skip
    tokenizer = load_tokenizer(ModelSection(name_or_path=str(folder)))
    test = {"path": str(data / "test.jsonl"), "map": columns, "limit": options.rows}
    answers = TaskSpec(name="gsm8k", max_new_tokens=options.max_new_tokens, **test)
    tasks = load_tasks([answers, TaskSpec(name="loss", metric="loss", **test)])
    return World(
        options=options, folder=folder, device=device, tokenizer=tokenizer,
        prepared=prepare(section, tokenizer, seed=options.seed), tasks=tasks, started=started,
        facts={"epochs": options.epochs, "step_tokens": options.tokens, "seed": options.seed, **machine(device.type)},
    )  # fmt: skip


def tuned_model(world: World, variant: Any) -> Any:
    """A fresh base, prepared for the method."""
    from luthier.model.adapters import apply_method
    from luthier.model.load import load_base
    from luthier.recipe.schema import MethodSection, ModelSection

    dtype = "bfloat16" if world.device.native_bf16 else "float32"
    section = ModelSection(name_or_path=str(world.folder))
    base = load_base(section, device=world.device, dtype=dtype, quantization=variant.quantization)
    return apply_method(base, MethodSection(**variant.method), seed=world.options.seed, unfrozen=variant.unfrozen)


def train(world: World, variant: Any, rate: float) -> dict[str, Any]:
    """One run: steps as the library's loop takes them, then the loss on the held-out rows."""
    import torch

    from benchmarks.gpu import trainers
    from benchmarks.gpu.steps import Steps
    from luthier.train.processes import make_accelerator
    from luthier.train.validate import validate

    options, cuda, began = world.options, world.device.type == "cuda", time.time()
    tuned = tuned_model(world, variant)
    sequences = max(1, options.tokens // options.max_length)
    steps_wanted = max(2, round(options.epochs * len(world.prepared.packs) / sequences))
    recipe = trainers.make_recipe(
        method={**variant.method, **({"spectrum_file": None} if variant.unfrozen else {})}, sequences=sequences,
        max_steps=steps_wanted, max_length=options.max_length, quantization=variant.quantization,
        dequantize_base=variant.quantization == "nf4", seed=options.seed,
        train={"learning_rate": rate, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, **variant.train},
    )  # fmt: skip
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    accelerator = make_accelerator(next(tuned.model.parameters()).device, report_to=[], logging_dir="none")
    trainer = trainers.make("fast", accelerator, tuned.model, recipe, total_steps=steps_wanted)
    steps = Steps(trainer, accelerator, recipe, examples=world.prepared.train, packs=world.prepared.packs)
    updates, ends = [], [time.perf_counter()]
    for _ in range(steps_wanted):
        updates.append(steps.take())
        ends.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated() if cuda else None
    held_out = validate(
        trainer, world.prepared.validation, tokens_per_batch=options.tokens, step=steps_wanted, abandon=lambda: False
    )
    steps.close()
    kept = {name: p.detach().clone() for name, p in tuned.model.named_parameters() if p.requires_grad}
    half = len(updates) // 2  # the later half: nothing compiles there any more
    return {
        "method": variant.name, "learning_rate": rate, "validation_loss": held_out.loss, "steps": steps_wanted,
        "tokens": sum(update.tokens for update in updates), "trained": tuned.report.trainable,
        "trained_percent": tuned.report.percent, "first_loss": updates[0].loss, "last_loss": updates[-1].loss,
        "tokens_per_second": sum(update.tokens for update in updates[half:]) / (ends[-1] - ends[half]),
        "peak_gib": peak / 2**30 if peak else None, "run_seconds": time.time() - began, "kept": kept,
    }  # fmt: skip


def score(world: World, variant: Any | None) -> dict[str, Any]:
    """Test loss and answers of the untouched base, or of the best run of a method."""
    import torch

    from benchmarks.gpu.method_variants import Variant
    from luthier.evaluate.run import run_tasks

    began = time.time()
    untouched = Variant("base", {"name": "full"}, ())
    model = tuned_model(world, variant or untouched).model
    if variant is not None:
        kept = world.best[variant.name]["kept"]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept.pop(name))
        assert not kept, f"not in the model: {sorted(kept)[:3]}"
    answers, loss = run_tasks(model, world.tokenizer, world.tasks, batch_size=world.options.batch_size)
    return {
        "test_loss": loss.score, "test_loss_low": loss.low, "test_loss_high": loss.high,
        "accuracy": answers.score, "accuracy_low": answers.low, "accuracy_high": answers.high,
        "strict": answers.secondary.get("strict"), "rows": answers.n, "new_tokens": answers.new_tokens,
        "answers_per_second": answers.n / answers.seconds, "score_seconds": time.time() - began,
        "right": [int(row["score"]) for row in answers.rows],
        "row_losses": [[round(row["secondary"]["nll"], 4), row["secondary"]["weight"]] for row in loss.rows],
    }  # fmt: skip


def free() -> None:
    """Give the memory of a finished run back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sweep(world: World, chosen: list[Any], reserve: dict[str, float]) -> None:
    """Every method with its first rate, then its second, ..., while there is time to score each once."""
    longest = 0.0
    for place in range(world.options.rates):
        for variant in chosen:
            if place >= len(variant.rates):
                continue
            scoring = sum(reserve[other.name] for other in chosen if other.name in world.best or other is variant)
            if world.left < scoring + 1.2 * longest:
                world.write(kind="skipped", method=variant.name, learning_rate=variant.rates[place], reason="budget")
                print(
                    f"{variant.name} at {variant.rates[place]:g}: not run, the budget is needed for scoring", flush=True
                )
                continue
            found = train(world, variant, variant.rates[place])
            free()
            if place or longest == 0.0:
                longest = max(longest, found["run_seconds"])
            kept = found.pop("kept")
            world.write(kind="run", **found)
            print(
                f"{variant.name:28} rate {found['learning_rate']:g}  validation {found['validation_loss']:.4f}  "
                f"{found['tokens_per_second']:,.0f} tokens/s  {found['run_seconds']:.1f} s", flush=True,
            )  # fmt: skip
            best = world.best.get(variant.name)
            if best is None or found["validation_loss"] < best["validation_loss"]:
                world.best[variant.name] = {**found, "kept": kept}


def finish(world: World, chosen: list[Any]) -> list[dict[str, Any]]:
    """Score the best rate of each method; compare with full and with the first random choice."""
    from benchmarks.gpu.method_table import against

    results: dict[str, dict[str, Any]] = {}
    for variant in chosen:
        best = world.best.get(variant.name)
        if best is None:
            continue
        if world.left < 0:
            world.write(kind="skipped", method=variant.name, reason="over the budget before it was scored")
            continue
        found = {**{key: value for key, value in best.items() if key != "kept"}, **score(world, variant)}
        found["rate_at_end_of_grid"] = best["learning_rate"] in (min(variant.rates), max(variant.rates))
        free()
        results[variant.name] = found
        world.write(kind="result", **found)
        print(f"{variant.name:28} scored in {found['score_seconds']:.0f} s", flush=True)
    for name, found in results.items():
        for other in ("full", "random_30_seed0"):
            if other in results and other != name:
                found[f"against_{other}"] = against(found, results[other])
                world.write(kind="comparison", method=name, other=other, **found[f"against_{other}"])
    return list(results.values())


def main() -> int:
    """Base, sweep, scores, table."""
    started, options = time.time(), parse()
    import transformers

    from benchmarks.gpu.machine import take_turn
    from benchmarks.gpu.method_table import table
    from benchmarks.gpu.method_variants import adapter_variants, variants
    from luthier.runtime.console import set_quiet

    transformers.utils.logging.disable_progress_bar()
    set_quiet(True)
    take_turn()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    world = make_world(options, started)
    base = score(world, None)
    world.write(kind="base", **base)
    print(
        f"untouched: {base['accuracy']:.1%}, loss {base['test_loss']:.4f}; scoring took {base['score_seconds']:.0f} s"
    )
    chosen = []
    for variant in [*variants(world.folder), *(adapter_variants() if options.adapters else [])]:
        if not re.search(options.only, variant.name):
            continue
        if variant.skip:
            world.write(kind="skipped", method=variant.name, reason=variant.skip)
            print(f"{variant.name}: skipped, {variant.skip}")
        else:
            chosen.append(variant)
    each = base["score_seconds"]
    reserve = {v.name: each * (MORE_FOR_ADAPTERS if "lora" in v.name else 1.1) for v in chosen}
    sweep(world, chosen, reserve)
    rows = finish(world, chosen)
    print(table(rows, base))
    print(f"{time.time() - started:.0f} s; {options.out}")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
