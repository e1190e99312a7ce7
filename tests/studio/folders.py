"""Run folders in the shapes that the stages write, without running anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.recipe.emit import dump_yaml
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json, write_text

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "Tickets",
    "model": {"name_or_path": "org/base-135m"},
    "data": {"train": [{"path": "rows.jsonl"}], "max_length": 256},
    "method": {"name": "lora", "r": 8},
    "train": {"max_steps": 5},
    "evaluate": {"tasks": [{"name": "t", "path": "test.jsonl", "metric": "exact"}]},
    "export": {"merge": False},
    "output_dir": "runs/one",
}


def score_rows(scores: Sequence[float], *, said: str = "answer") -> dict[str, Any]:
    rows = [
        {
            "ref": f"test.jsonl:{place + 1}",
            "prompt": f"<s>question {place}",
            "reference": "right answer",
            "messages": [{"role": "user", "content": f"question {place}"}],
            "output": f"{said} {place} {score:g}",
            "extracted": f"{score:g}",
            "score": score,
            "secondary": {},
            "finish_reason": "stop",
            "new_tokens": 3,
        }
        for place, score in enumerate(scores)
    ]
    return {
        "name": "t",
        "version": 0,
        "metric": "exact",
        "n": len(rows),
        "score": sum(scores) / len(scores),
        "low": 0.0,
        "high": 1.0,
        "confidence": 0.95,
        "seconds": 1.0,
        "new_tokens": 9,
        "tokens_per_second": 9.0,
        "settings": {},
        "secondary": {},
        "rows": rows,
    }


def make_run(
    folder: Path,
    *,
    losses: Sequence[float] = (2.0, 1.5, 1.25),
    finished: bool = True,
    failed: Mapping[str, Any] | None = None,
    before: Sequence[float] = (0.0, 0.0, 1.0, 1.0),
    after: Sequence[float] = (1.0, 0.0, 1.0, 0.0),
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    run = RunFolder(folder).create()
    value = {**RECIPE, "output_dir": f"runs/{folder.name}", **(recipe or {})}
    write_text(folder / "recipe.yaml", "# the user's words\n" + dump_yaml(value))
    write_text(folder / "resolved.yaml", "# Every value.\n" + dump_yaml(value, comments={"train.max_steps": "five"}))
    write_json(
        folder / "manifest.json",
        {
            "command": ["luthier", "run", "recipe.yaml"],
            "working_directory": str(folder.parents[1]),
            "recipe": value,
            "method": "lora",
            "seed": 0,
            "versions": {"luthier": "0.1.0"},
            "hardware": {"cpu": "one"},
            "code": {},
            "base": {},
        },
    )
    run.event("stage_started", stage="data", reason="not done yet")
    run.finish_stage("data", depends_on={}, result={"rows_used": 4}, seconds=1.0)
    run.event("stage_finished", stage="data", seconds=1.0)
    run.event("stage_started", stage="train", reason="not done yet")
    run.event("training_started", step=0, total_steps=len(losses), resumed_from=None)
    for step, loss in enumerate(losses, 1):
        run.metric(
            step=step,
            epoch=step / 10,
            loss=loss,
            grad_norm=1.0,
            learning_rate=1e-3,
            tokens=step * 100,
            trained_tokens=step * 40,
            seconds=float(step),
            tokens_per_second=100.0,
        )
    if losses:
        run.metric(step=len(losses), eval_loss=losses[-1] + 0.1, eval_tokens=20)
    if failed is not None:
        run.event("failed", **{"code": "T401", "message": "the loss is not finite", "exit_code": 1, **failed})
        return folder
    if not finished:
        return folder
    train = {
        "steps": len(losses),
        "total_steps": len(losses),
        "final_loss": losses[-1],
        "eval_loss": losses[-1] + 0.1,
        "tokens_per_second": 512.0,
        "peak_bytes": 3 << 29,
        "names": ["w"] * 100,
    }
    run.finish_stage("train", depends_on={}, result=train, seconds=60.0)
    run.event("stage_finished", stage="train", seconds=60.0)
    tasks = [
        {key: item for key, item in score_rows(after).items() if key in ("name", "metric", "n", "score", "low", "high")}
    ]
    run.finish_stage("evaluate", depends_on={}, result={"tasks": tasks}, seconds=6.0)
    told = {
        "name": "t",
        "metric": "exact",
        "n": len(after),
        "before": 0.5,
        "after": 0.5,
        "delta": 0.0,
        "low": -0.5,
        "high": 0.5,
        "confidence": 0.95,
        "test": "McNemar, exact",
        "p_value": 1.0,
        "verdict": "no evidence",
        "wins": 1,
        "losses": 1,
    }
    run.finish_stage("compare", depends_on={}, result={"tasks": [told]}, seconds=0.1)
    write_json(folder / "eval" / "before.json", {"model": "base", "tasks": [score_rows(before)]})
    write_json(folder / "eval" / "after.json", {"model": "tuned", "tasks": [score_rows(after)]})
    write_json(folder / "eval" / "comparison.json", {"tasks": [{**told, "changed": [0, 3]}]})
    write_text(folder / "report.html", "<script>alert(1)</script>")
    run.finish_stage("report", depends_on={}, result={"file": "report.html"}, seconds=0.1)
    run.event("stage_finished", stage="report", seconds=0.1)
    return folder


def many_runs(root: Path, count: int, *, only: Sequence[str] = ()) -> None:
    """Copies of one finished run, as links to its files: the time to make them is not what is measured."""
    one = make_run(root / "run-00000", losses=[2.0 - 0.01 * step for step in range(100)])
    files = [file.relative_to(one) for file in one.rglob("*") if file.is_file() and "eval" not in file.parts]
    files = [file for file in files if not only or file.name in only]
    for number in range(1, count):
        folder = root / f"run-{number:05d}"
        (folder if only else folder / "stages").mkdir(parents=True)
        for file in files:
            os.link(one / file, folder / file)


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
