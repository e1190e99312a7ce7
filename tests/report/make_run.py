"""A run folder of the true shapes, with made-up numbers: what the report must be able to show."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

from luthier.quickstart.tickets import CARD, make_tickets
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json, write_text

RESOLVED = """# Every value of this run; a comment is the reason of a value that the recipe left open.
version: 1
name: Support tickets to JSON
model:
  name_or_path: smollm2-135m-instruct
  dtype: float32  # the cpu device has no bfloat16 units, and bfloat16 without such units is several times slower
  quantization: none  # method lora
data:
  train:
    - path: runs/quickstart/tickets/train.jsonl
      format: auto
      weight: 1.0
  max_length: 256
method:
  name: lora
  r: 16
train:
  learning_rate: 0.002
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1  # one micro-batch holds the whole step
  gradient_checkpointing: false  # 1.9 GiB of 23.4 GiB are needed without it
  save_steps: 7  # 10 times in 75 steps
  text: "a quoted  # is no comment"
evaluate:
  batch_size: 32  # prompts at once on cpu; changes no answer
output_dir: runs/quickstart
"""
MEASURED = {
    "peak_bytes": 2_500_000_000, "seconds_to_first_step": 4.25, "seconds_per_step": 1.5, "tokens_per_second": 440.0,
    "trained_tokens_per_second": 264.0, "steps": 75, "calibration": None, "mfu": None,
    "predicted": {
        "peak_bytes": 2_400_000_000, "seconds_per_step": 2.0, "update_seconds": 0.1, "tokens_per_second": 330.0,
        "mfu": None,
    },
}  # fmt: skip
RECIPE = "# a recipe\nversion: 1\nmodel: {name_or_path: smollm2-135m-instruct}\n"


def make_run(folder: Path, *, n: int = 60, steps: int = 75) -> RunFolder:
    """A complete run."""
    run = RunFolder(folder).create()
    write_text(folder / "recipe.yaml", RECIPE)
    write_text(folder / "resolved.yaml", RESOLVED)
    write_text(folder / "data_card.md", CARD)
    write_json(folder / "manifest.json", _manifest())
    write_json(folder / "data" / "manifest.json", _data())
    write_json(folder / "measured.json", MEASURED)
    for name, seconds in (
        ("data", 2.1),
        ("baseline", 41.0),
        ("train", 139.4),
        ("evaluate", 29.8),
        ("compare", 0.2),
        ("merge", 9.7),
    ):
        run.finish_stage(name, depends_on={}, result=_train_result() if name == "train" else {}, seconds=seconds)
    _metrics(run, steps)
    before, after = _scores(n)
    write_json(folder / "eval" / "before.json", before)
    write_json(folder / "eval" / "after.json", after)
    write_json(folder / "eval" / "comparison.json", _comparison(before, after))
    write_json(
        folder / "export" / "merge.json",
        {
            "prompts": 8,
            "tokens": 912,
            "max_logit_difference": 4.1e-5,
            "bound": 1e-3,
            "mean_kl": 2.3e-10,
            "argmax_agreement": 1.0,
            "dtype": "bfloat16",
            "base": "smollm2-135m-instruct",
            "quantized_base": False,
            "passed": True,
        },
    )
    (folder / "final").mkdir()
    return run


def _manifest() -> dict[str, Any]:
    return {
        "command": ["luthier", "quickstart"],
        "working_directory": "/somewhere",
        "recipe": {
            "name": "Support tickets to JSON",
            "model": {"name_or_path": "smollm2-135m-instruct"},
            "method": {"name": "lora", "r": 16},
        },
        "seed": 0,
        "code": {"commit": "9f2c1b7d" * 5, "uncommitted_changes": False},
        "versions": {
            "python": "3.11.9",
            "luthier": "0.1.0",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "peft": "0.21.2",
        },
        "hardware": {"system": "Linux-6.1", "cpu": "A processor", "cores": 2, "memory_bytes": 25_110_446_080},
        "base": {
            "hash": "a1" * 16,
            "weights": "b2" * 16,
            "config": "c3" * 16,
            "tokenizer": "d4" * 16,
            "files": {"x": "y"},
        },
        "sources": ["e5" * 16],
        "data": "f6" * 16,
    }


def _train_result() -> dict[str, Any]:
    return {"method": {"method": "lora", "trainable": 4_884_480, "total": 139_399_488, "percent": 3.504}, "steps": 75}


def _tokens(row: dict[str, Any]) -> list[dict[str, Any]]:
    tokens = []
    for message in row["messages"]:
        answer = message["role"] == "assistant"
        tokens.append({"text": "<|im_start|>", "kind": "special", "id": 1, "weight": 0.0})
        for text in re.findall(r" ?[A-Za-z]+|\d|\s+|.", f"{message['role']}\n{message['content']}"):
            trained = answer and text not in ("assistant", "\n")
            tokens.append(
                {
                    "text": text,
                    "kind": "trained" if trained else "context",
                    "id": len(text) * 37,
                    "weight": float(trained),
                }
            )
        tokens.append({"text": "<|im_end|>", "kind": "special", "id": 2, "weight": float(answer)})
        tokens.append({"text": "\n", "kind": "context", "id": 198, "weight": 0.0})
    return tokens


def _data() -> dict[str, Any]:
    counts = [3, 14, 31, 52, 66, 58, 41, 22, 9, 4]
    return {
        "rows_read": 300,
        "rows_used": 300,
        "validation_rows": 0,
        "tokens": 33_775,
        "trained_tokens": 12_420,
        "trained_fraction": 0.3677,
        "packs": 300,
        "pack_efficiency": 1.0,
        "dropped": {},
        "dropped_rows": [],
        "truncated": 0,
        "notes": {"chat template adds a line break after the end mark": 300},
        "duplicates": 0,
        "train_validation_overlap": 0,
        "lengths": {
            "min": 84,
            "p50": 112,
            "p95": 130,
            "max": 141,
            "histogram": [[84 + 6 * i, 90 + 6 * i, count] for i, count in enumerate(counts)],
        },
        "sources": [
            {
                "path": "runs/quickstart/tickets/train.jsonl",
                "format": "messages",
                "verdict": "every row has a list `messages` of objects with `role` and `content`",
                "rows": 300,
                "hash": "e5" * 16,
            }
        ],
        "mask_proof": {"rows": 300, "turns": 300, "methods": {"prefix of the rendered conversation": 300}},
        "samples": [
            {"ref": f"train.jsonl:{index + 1}", "tokens": _tokens(row)}
            for index, row in enumerate(make_tickets(3, seed=1, split="train"))
        ],
        "hash": "f6" * 16,
        "cache": "miss: first use of this data",
    }


def _metrics(run: RunFolder, steps: int) -> None:
    chooser = random.Random(4)
    for step in range(1, steps + 1):
        share = step / steps
        rate = 2e-3 * (step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * share)))
        loss = 0.05 + 1.9 * math.exp(-9 * share) + 0.06 * chooser.random() * (1.6 - share)
        run.metric(
            step=step,
            epoch=share,
            loss=loss,
            grad_norm=0.4 + 3 * math.exp(-12 * share) + 0.5 * chooser.random(),
            learning_rate=rate,
            tokens=450,
            trained_tokens=165,
            seconds=3.1,
            tokens_per_second=142 + 9 * chooser.random(),
            token_accuracy=1 - 0.3 * math.exp(-7 * share) - 0.01 * chooser.random(),
        )
        if step % 15 == 0:
            run.metric(step=step, eval_loss=loss + 0.04, eval_tokens=4000)


def _scores(n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    chooser = random.Random(8)
    files = []
    for label in ("base", "tuned"):
        rows = []
        for index, row in enumerate(make_tickets(n, seed=77, split="development")):
            reference = row["messages"][2]["content"]
            answer = json.loads(reference)
            right = label == "tuned" and chooser.random() < 0.87
            if label == "base":
                output = (
                    "Dear customer,\n\nThank you for reaching out to us about your order. We are sorry to hear that"
                )
            else:
                output = (
                    reference
                    if right
                    else json.dumps({**answer, "issue": "late" if answer["issue"] != "late" else "damaged"})
                )
            rows.append(
                {
                    "ref": f"runs/quickstart/tickets/test.jsonl:{index + 1}",
                    "prompt": "...",
                    "messages": row["messages"][:2],
                    "output": output,
                    "extracted": output,
                    "reference": reference,
                    "score": float(right),
                    "secondary": {"json_valid": float(label == "tuned")},
                    "finish_reason": "length" if label == "base" else "stop",
                }
            )
        score = sum(row["score"] for row in rows) / n
        wide = 1.96 * math.sqrt(max(score * (1 - score), 0.01) / n)
        files.append(
            {
                "model": label,
                "tasks": [
                    {
                        "name": "tickets",
                        "version": 1,
                        "metric": "json_exact",
                        "n": n,
                        "score": score,
                        "low": max(0.0, score - wide),
                        "high": min(1.0, score + wide),
                        "confidence": 0.95,
                        "seconds": 35.0,
                        "new_tokens": 2500,
                        "tokens_per_second": 71.0,
                        "settings": {"max_new_tokens": 64},
                        "secondary": {
                            "json_valid": float(label == "tuned"),
                            "field_f1": 0.02 if label == "base" else 0.961,
                        },
                        "rows": rows,
                    }
                ],
            }
        )
    return files[0], files[1]


def _comparison(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    old, new = before["tasks"][0], after["tasks"][0]
    changed = [i for i, (a, b) in enumerate(zip(old["rows"], new["rows"], strict=True)) if a["score"] != b["score"]]
    delta = new["score"] - old["score"]
    return {
        "tasks": [
            {
                "name": "tickets",
                "metric": "json_exact",
                "n": old["n"],
                "before": old["score"],
                "after": new["score"],
                "delta": delta,
                "low": delta - 0.08,
                "high": delta + 0.07,
                "confidence": 0.95,
                "test": "McNemar, exact",
                "p_value": 2.2e-16,
                "verdict": "better",
                "wins": len(changed),
                "losses": 0,
                "changed": changed,
            }
        ]
    }
