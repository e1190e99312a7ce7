"""Loss curves on real text: is the fast engine within the spread of three seeds of plain transformers?

    python benchmarks/gpu/curve.py --method full                 # data and tokenizer from the pack (SITE)
    python benchmarks/gpu/curve.py --method lora                 # with the fp8 base beside it
    python benchmarks/gpu/curve.py --data FILE --device cpu --tiny --steps 40

GSM8K questions and answers (answers trained), packed; SmolLM2-135M-Instruct where its package is (its weights went
through a 4-bit file), else random weights of its shape. A seed is an order of the rows; adapters start equal.

    hf      padded rows through transformers' own forward, cross-entropy in fp32, three seeds: the reference
    fast    the product's path, the same seeds
    fp8     the product's path on an fp8 base (LoRA), the same seeds

Per variant: means of 20 steps. Spread = mean over these windows of (highest - lowest of the three plain seeds).
Difference = largest |variant - plain| of the same seed and window. Verdict: within if difference <= spread.
Held-out loss: rows that no seed trains on, after the last step. Prints `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder: its `kernels.py` is also a package's name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

WINDOW = 20
HELD_OUT = 96
RATES = {"full": 1e-4, "lora": 5e-4}


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    site = Path(os.environ.get("SITE", "site"))
    parser.add_argument("--data", type=Path, default=site / "data" / "train.jsonl", help="jsonl: question, answer")
    parser.add_argument("--tokenizer", type=Path, default=site / "tok", help="where the real model is not")
    parser.add_argument("--method", default="full", choices=["full", "lora"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--max-doc", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", help="default: hf fast, and fp8 with lora on cuda")
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "layer"])
    parser.add_argument("--random", action="store_true", help="random weights even where the real ones are")
    parser.add_argument("--budget", type=float, default=240.0, help="begin no curve after this many seconds")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.tokens, options.max_doc = 512, 512
    fp8 = options.method == "lora" and options.device == "cuda"
    options.variants = options.variants or ["hf", "fast", *(["fp8"] if fp8 else [])]
    options.dtype = "bfloat16" if options.device == "cuda" else "float32"
    return options


class Texts:
    """Rows as examples, and the held-out ones as one batch."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from tokenizers import Tokenizer

        from luthier.data.batch import collate
        from luthier.data.pack import pack
        from luthier.data.types import Example, RowRef

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        end = tokenizer.token_to_id("<|im_end|>")
        examples = []
        lines = options.data.read_text("utf-8").splitlines()
        for number, line in enumerate(lines[: 600 if options.tiny else None], 1):
            row = json.loads(line)
            prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer: ").ids
            answer = [*tokenizer.encode(row["answer"]).ids, end]
            ids, weights = [*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer)
            if len(ids) <= options.max_doc:
                examples.append(Example(ids=ids, weights=weights, ref=RowRef(options.data.name, number)))
        held = 8 if options.tiny else HELD_OUT
        self.examples, self.held_out = examples[:-held], collate(examples[-held:])
        self.packs = pack([len(example) for example in self.examples], options.max_doc)
        self.vocab_size = tokenizer.get_vocab_size()


def real_model_folder(options: argparse.Namespace) -> Path | None:
    """The embedded model, converted if need be; None (and a line that says why) where it is not."""
    from luthier.model.embedded import ensure_smollm2
    from luthier.runtime.errors import LuthierError

    if options.random or options.tiny:
        return None
    try:
        return ensure_smollm2()
    except LuthierError as error:
        print(f"random weights: {str(error).splitlines()[0]}", flush=True)
        return None


def make_model(options: argparse.Namespace, folder: Path | None) -> Any:
    """Real or random weights, on the device."""
    import torch

    from benchmarks.gpu.models import random_model, shape

    if folder is None:
        return random_model(*shape("tiny" if options.tiny else "smol135m"), device=options.device, dtype=options.dtype)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, options.dtype), attn_implementation="sdpa",
    ).to(options.device)  # fmt: skip


def run(variant: str, seed: int, options: argparse.Namespace, texts: Texts, folder: Path | None) -> dict[str, Any]:
    """One curve: losses of every step, held-out loss, tokens/s."""
    import torch

    from benchmarks.gpu import trainers
    from benchmarks.gpu.steps import Steps
    from luthier.model.adapters import apply_method
    from luthier.train.processes import make_accelerator

    method: dict[str, Any] = {"name": options.method}
    if options.method == "lora":
        method |= {"r": 16, "lora_alpha": 32.0}
    recipe = trainers.make_recipe(
        method=method, sequences=max(1, options.tokens // options.max_doc), max_steps=options.steps,
        max_length=options.max_doc, quantization="fp8" if variant == "fp8" else "none", seed=seed,
        train={
            "learning_rate": RATES[options.method], "lr_scheduler_type": "cosine", "warmup_ratio": 0.05,
            **trainers.recompute_keys("none" if variant == "hf" else options.recompute, None),
        },
    )  # fmt: skip
    model = apply_method(make_model(options, folder), recipe.method, seed=0).model
    accelerator = make_accelerator(next(model.parameters()).device, report_to=[], logging_dir="none")
    implementation = variant if variant in ("hf", "plain") else "fast"
    trainer = trainers.make(implementation, accelerator, model, recipe, total_steps=options.steps)
    steps = Steps(trainer, accelerator, recipe, examples=texts.examples, packs=texts.packs)
    start, updates = time.perf_counter(), []
    for _ in range(getattr(options, "stop_after", options.steps)):
        updates.append(steps.take())
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        batch = texts.held_out.to(options.device)
        held_out = float(trainer.engine.loss(batch).loss) / batch.weight_sum
    report = [f"{part.name}: {part.runs}" for part in trainer.engine.report]
    steps.close()
    return {
        "variant": variant, "seed": seed, "losses": [round(update.loss, 5) for update in updates],
        "held_out": held_out, "tok_s": sum(update.tokens for update in updates) / seconds, "report": report,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def windows(losses: Sequence[float]) -> list[float]:
    """Means of WINDOW steps."""
    return [sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, len(losses) - WINDOW + 1, WINDOW)]


def judge(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread of the plain seeds, and for every other variant its largest difference; see the head of this file."""
    plain = {curve["seed"]: curve for curve in curves if curve["variant"] == "hf"}
    rows = [windows(curve["losses"]) for curve in plain.values()]
    if len(rows) < 2 or not rows[0]:
        return {"spread": None, "variants": {}}
    ranges = [max(column) - min(column) for column in zip(*rows, strict=True)]
    spread = sum(ranges) / len(ranges)
    found: dict[str, Any] = {}
    for variant in dict.fromkeys(curve["variant"] for curve in curves if curve["variant"] != "hf"):
        pairs = [(curve, plain[curve["seed"]]) for curve in curves if curve["variant"] == variant]
        signed = [
            [ours - theirs for ours, theirs in zip(windows(a["losses"]), windows(b["losses"]), strict=True)]
            for a, b in pairs
        ]
        difference = max(abs(value) for row in signed for value in row)
        found[variant] = {
            "difference": difference, "within": difference <= spread, "seeds": len(pairs),
            "mean_signed": sum(map(sum, signed)) / sum(map(len, signed)),
            "held_out_difference": [a["held_out"] - b["held_out"] for a, b in pairs],
        }  # fmt: skip
    held = [curve["held_out"] for curve in plain.values()]
    return {"spread": spread, "ranges": ranges, "held_out_range": max(held) - min(held), "variants": found}


def main() -> int:
    """All curves, then the verdict; the exit code is 1 if a curve failed or `fast` is not within the spread."""
    from benchmarks.gpu.machine import machine, take_turn

    options = parse()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    take_turn()
    start = time.time()
    folder = real_model_folder(options)
    texts = Texts(options, folder or options.tokenizer)
    curves, errors = [], []
    # Seed by seed, so that a spent budget leaves whole pairs.
    for seed in options.seeds:
        for variant in options.variants:
            if time.time() - start > options.budget:
                errors.append(f"{variant} seed {seed}: not run, over the budget")
                continue
            try:
                curve = run(variant, seed, options, texts, folder)
            except Exception as error:  # noqa: BLE001  the others still tell something
                traceback.print_exc()
                errors.append(f"{variant} seed {seed}: {type(error).__name__}: {error}"[:300])
                continue
            curves.append(curve)
            means = " ".join(f"{mean:.3f}" for mean in windows(curve["losses"]))
            print(f"{variant:6} seed {seed}  held-out {curve['held_out']:.4f}  {curve['tok_s']:,.0f} tok/s  {means}")
    verdict = judge(curves)
    spread = verdict["spread"]
    words = [
        f"{name}: {'within' if v['within'] else 'OUTSIDE'} ({v['difference']:.4f} against spread {spread:.4f}, mean "
        f"{v['mean_signed']:+.4f})"
        for name, v in verdict["variants"].items()
    ]
    print("\n".join([*words, *errors]) or "no curve", flush=True)
    info = {
        "peer": "curve", "model": "smollm2" if folder else "random135m" if not options.tiny else "tiny",
        "method": options.method, "tokens": options.tokens, "verdict": "; ".join([*words, *errors]) or "no curve",
        "steps": options.steps, "judged": verdict, "curves": curves, "errors": errors,
        "total_s": round(time.time() - start, 1), **machine(options.device),
    }  # fmt: skip
    print(f"RESULT {json.dumps(info)}", flush=True)
    return int(bool(errors) or not verdict["variants"].get("fast", {"within": True})["within"])


if __name__ == "__main__":
    sys.exit(main())
