"""One setting in one process, through the product's path; prints a line `RESULT {json}`: the last one counts.

    python benchmarks/gpu/bench.py --model llama8b --method lora --tokens 16384
    python benchmarks/gpu/bench.py --device cpu --tiny --method full          # a check without a GPU

apply_method -> the trainer of luthier/train/setup.py -> `update` (collating, forward, backward, clipping, optimizer).
What the numbers mean: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED = time.time()
sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder: its `kernels.py` is also a package's name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from benchmarks.gpu.models import SHAPES  # noqa: E402

OPTIMIZERS = "adamw_torch_fused"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags; `--tiny` shrinks everything to seconds on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama8b", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="fewer decoder layers")
    parser.add_argument("--method", default="lora", choices=["lora", "qlora", "full", "freeze"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--last-layers", type=int, default=8, help="freeze: layers that train")
    parser.add_argument("--tokens", type=int, default=16384, help="of a step, padding of packs included")
    parser.add_argument("--max-doc", type=int, default=1024, help="longest document, and size of a pack")
    parser.add_argument("--mean-doc", type=float, default=300.0)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "layer"])
    parser.add_argument("--recompute-layers", type=int, help="with layer or selective: the first n as whole layers")
    parser.add_argument("--quantization", default="auto", choices=["auto", "none", "nf4", "fp8"])
    parser.add_argument("--dequantize-base", action="store_true")
    parser.add_argument("--optim", default=OPTIMIZERS)
    parser.add_argument("--impl", default="fast", choices=["fast", "plain", "hf"])
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps, at least")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="go on timing for about this long")
    parser.add_argument("--max-seconds", type=float, default=25.0, help="stop the timed part after about this long")
    parser.add_argument("--phases", type=int, default=2, help="steps split into phases after the timed ones; 0: none")
    parser.add_argument("--profile", action="store_true", help="one more step under torch's profiler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default=None, help="default: bfloat16 on cuda, float32 on a CPU")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--label", default="", help="any text; comes back in the result")
    parser.add_argument("--out", type=Path, help="append the line here too")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.model, options.max_doc, options.mean_doc = "tiny", min(options.max_doc, 128), 40.0
        options.tokens, options.steps, options.min_seconds = min(options.tokens, 512), min(options.steps, 3), 0.0
        options.last_layers = 1
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    if options.quantization == "auto":
        options.quantization = "nf4" if options.method == "qlora" else "none"
    return options


def method_keys(options: argparse.Namespace) -> dict[str, Any]:
    """`method` of the recipe."""
    keys: dict[str, Any] = {"name": options.method}
    if options.method in ("lora", "qlora"):
        keys |= {"r": options.rank, "lora_alpha": float(options.rank), "lora_dropout": options.dropout}
    if options.method == "freeze":
        keys["last_n_layers"] = options.last_layers
    return keys


class Run:
    """Everything of one setting: model, trainer, feed, and the steps taken so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        from benchmarks.gpu.clock import Clock

        self.options, self.clock = options, Clock(options.device)
        self.updates: list[Any] = []

    def build(self, info: dict[str, Any]) -> None:
        """Model, then (timed into `first_step_s`) method, trainer, feed and the first step."""
        import torch

        from benchmarks.gpu import trainers
        from benchmarks.gpu.documents import make_documents
        from benchmarks.gpu.models import random_model, shape
        from benchmarks.gpu.predicted import predicted
        from benchmarks.gpu.steps import Steps
        from luthier.data.pack import pack
        from luthier.model.adapters import apply_method
        from luthier.train.processes import make_accelerator

        options = self.options
        start = time.perf_counter()
        kind, settings = shape(options.model, layers=options.layers)
        nf4 = options.quantization == "nf4"
        model = random_model(kind, settings, device=options.device, dtype=options.dtype, nf4=nf4)
        sequences = max(1, options.tokens // options.max_doc)
        examples = make_documents(
            (min(24, options.warmup + options.steps) * sequences + 1) * options.max_doc, max_doc=options.max_doc,
            vocab_size=settings["vocab_size"], mean=options.mean_doc, seed=options.seed,
        )  # fmt: skip
        packs = pack([len(example) for example in examples], options.max_doc)
        packs = packs[: len(packs) // sequences * sequences]  # the last step of an epoch is a whole one too
        self.clock.wait()
        info["load_s"] = round(time.perf_counter() - start, 2)
        info["model_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2) if self.clock.cuda else None
        self.clock.reset_peak()
        start = time.perf_counter()
        total = options.warmup + options.steps + 1000
        recipe = trainers.make_recipe(
            method=method_keys(options), sequences=sequences, max_steps=total, max_length=options.max_doc,
            quantization=options.quantization, dequantize_base=options.dequantize_base,
            micro_batches=options.micro_batches, seed=options.seed,
            train={"optim": options.optim, **trainers.recompute_keys(options.recompute, options.recompute_layers)},
        )  # fmt: skip
        self.predict = lambda: predicted(model.config.to_dict(), recipe, options, examples, packs)
        tuned = apply_method(model, recipe.method, seed=options.seed).model
        self._count(tuned, examples, info)
        device = next(iter(tuned.parameters())).device
        accelerator = make_accelerator(device, report_to=[], logging_dir="none")
        self.trainer = trainers.make(options.impl, accelerator, tuned, recipe, total_steps=total)
        info["report"] = [f"{part.name}: {part.runs} ({part.reason})" for part in self.trainer.engine.report]
        self.steps = Steps(self.trainer, accelerator, recipe, examples=examples, packs=packs)
        info["setup_s"] = round(time.perf_counter() - start, 2)
        self.take()
        self.clock.wait()
        info["first_step_s"] = round(time.perf_counter() - start, 2)

    def _count(self, model: Any, examples: Any, info: dict[str, Any]) -> None:
        from benchmarks.gpu.flops import flops_per_token

        layers = model.config.num_hidden_layers
        recomputed = self.options.recompute_layers or (layers if self.options.recompute == "layer" else 0)
        lengths = [len(example) for example in examples]
        supervised = sum(example.trained_tokens for example in examples) / sum(lengths)
        self.flops = flops_per_token(model, lengths=lengths, supervised=supervised, recomputed_layers=recomputed)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        info.update(trained_m=round(trained / 1e6, 2), mean_doc=round(sum(lengths) / len(lengths), 1))

    def take(self) -> Any:
        """One update, as the loop does it."""
        result = self.steps.take()
        self.updates.append(result)
        return result


def timed(run: Run, info: dict[str, Any]) -> None:
    """Warm up, time, and put the numbers into `info`."""
    from benchmarks.gpu.clock import Compilations, median
    from benchmarks.gpu.flops import DATASHEET_PEAK, MEASURED_PEAK

    options, clock = run.options, run.clock
    for _ in range(max(0, options.warmup - 1)):
        run.take()
    clock.wait()
    info["peak_gib"], info["peak_reserved_gib"] = map(_rounded, clock.peak_gib())
    clock.reset_peak()
    compiled = Compilations()
    marks, before = [clock.mark()], len(run.updates)
    start = time.perf_counter()
    while True:
        run.take()
        marks.append(clock.mark())
        spent = time.perf_counter() - start
        enough = len(marks) > options.steps and spent >= options.min_seconds
        if enough or spent > options.max_seconds:
            break
    clock.wait()
    seconds = time.perf_counter() - start
    steps = [clock.milliseconds(a, b) for a, b in pairwise(marks)]
    done = run.updates[before:]
    rates = [update.tokens / ms * 1e3 for update, ms in zip(done, steps, strict=True)]
    tokens, supervised = sum(u.tokens for u in done), sum(u.trained_tokens for u in done)
    rate = tokens / seconds
    allocated, reserved = clock.peak_gib()
    info.update(
        steps=len(steps), tok_s=round(rate, 1), tok_s_median=round(median(rates), 1),
        sup_tok_s=round(supervised / seconds, 1), ms_step=round(1e3 * seconds / len(steps), 2),
        ms_steps=[round(ms, 1) for ms in steps], compiled=compiled.names[:20],
        ms_step_min=round(min(steps), 2), ms_step_median=round(median(steps), 2), ms_step_max=round(max(steps), 2),
        tokens_step=round(tokens / len(steps), 1), sup_frac=round(supervised / tokens, 3),
        steady_gib=_rounded(allocated), steady_reserved_gib=_rounded(reserved),
        flop_tok=run.flops.model, flop_tok_hardware=run.flops.hardware,
        mfu=round(rate * run.flops.model / MEASURED_PEAK, 4), hfu=round(rate * run.flops.hardware / MEASURED_PEAK, 4),
        mfu_989=round(rate * run.flops.model / DATASHEET_PEAK, 4),
        hfu_989=round(rate * run.flops.hardware / DATASHEET_PEAK, 4),
        loss_first=round(run.updates[0].loss, 4), loss_last=round(done[-1].loss, 4),
        grad_norm_first=round(run.updates[0].grad_norm, 4),
    )  # fmt: skip
    for key in ("peak_gib", "peak_reserved_gib"):
        other = allocated if key == "peak_gib" else reserved
        info[key] = None if info[key] is None else _rounded(max(info[key], other))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def look_inside(run: Run, info: dict[str, Any]) -> None:
    """What the plan says, phases and profile, after the timed steps."""
    from benchmarks.gpu.clock import Phases, median
    from benchmarks.gpu.trace import profile_step

    options = run.options
    info["predicted"] = run.predict()
    if options.phases:
        with Phases(run.clock, run.trainer) as phases:
            reports = [phases.report(run.take) for _ in range(options.phases)]
        info["phases_ms"] = {name: median([report[name] for report in reports]) for name in reports[0]}
    if options.profile:
        info["trace"] = profile_step(run.take, device=options.device, step_ms=info["ms_step_median"])


def preimport(options: argparse.Namespace) -> None:
    """The slow imports, before this process' turn: the one whose turn it is is being timed."""
    import accelerate
    import peft
    import torch
    import transformers
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM  # noqa: F401

    import luthier.model.adapters  # noqa: F401

    if options.quantization == "nf4" or "8bit" in options.optim:
        import bitsandbytes  # noqa: F401
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    del accelerate, peft, torch


def main() -> int:
    """Run the setting; the exit code is 1 if it failed."""
    from benchmarks.gpu.machine import machine, take_turn

    options = parse()
    kept = {k: v for k, v in vars(options).items() if k not in ("out", "device", "tiny")}
    info: dict[str, Any] = {"peer": f"luthier_{options.impl}", **kept}
    try:
        preimport(options)
        info["import_s"] = round(time.time() - STARTED, 1)
        take_turn()
        info.update(machine(options.device))
        run = Run(options)
        run.build(info)
        timed(run, info)
        print(f"RESULT {json.dumps(info)}", flush=True)  # what follows may be cut short
        try:
            look_inside(run, info)
        except Exception as error:  # noqa: BLE001  the timing stands; what broke afterwards is said
            traceback.print_exc()
            info["inside_error"] = f"{type(error).__name__}: {error}"[:300]
    except BaseException as error:  # noqa: BLE001  a setting that fails says so, and the list goes on
        traceback.print_exc()
        info["error"] = f"{type(error).__name__}: {error}"[:600]
        _peak_at_failure(options, info)
    info["total_s"] = round(time.time() - STARTED, 1)
    line = json.dumps(info)
    print(f"RESULT {line}", flush=True)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    return 1 if "error" in info else 0


def _peak_at_failure(options: argparse.Namespace, info: dict[str, Any]) -> None:
    if options.device != "cuda":
        return
    try:
        import torch

        info["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    except Exception as error:  # noqa: BLE001  the first error is the one that counts
        print(f"peak memory unknown: {error}", file=sys.stderr)


if __name__ == "__main__":
    os._exit(main())
