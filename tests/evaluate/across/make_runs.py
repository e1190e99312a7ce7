"""Run folders with the files that a comparison reads, in the shapes that the stages write."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.evaluate.compare import BINDING
from luthier.evaluate.results import results_to_json
from luthier.recipe.emit import dump_yaml
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json, write_text
from tests.evaluate.test_compare import result

SETTINGS = dict.fromkeys(BINDING, "x")
RECIPE: dict[str, Any] = {
    "version": 1,
    "model": {"name_or_path": "base-135m", "dtype": "float32"},
    "data": {"train": [{"path": "rows.jsonl", "weight": 1.0}], "max_length": 256},
    "method": {"name": "lora", "r": 16, "target_modules": ["q_proj", "v_proj"]},
    "train": {"learning_rate": 1e-3, "seed": 0, "gradient_checkpointing": False},
}


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with dotted keys set."""
    value = copy.deepcopy(dict(recipe))
    for key, item in changes.items():
        *path, last = key.split(".")
        place = value
        for part in path:
            place = place.setdefault(part, {})
        place[last] = item
    return value


def make_run(
    folder: Path,
    *,
    scores: Sequence[float] | None = None,
    tasks: Sequence[Any] = (),
    changes: Mapping[str, Any] | None = None,
    reasons: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    losses: Sequence[float] = (2.0, 1.5, 1.25),
    tokens: int = 100,
) -> Path:
    """A finished run; `scores` are those of task `t` after training, `tasks` are more results."""
    run = RunFolder(folder).create()
    recipe = changed(RECIPE, {"output_dir": str(folder), **(changes or {})})
    write_text(folder / "recipe.yaml", dump_yaml(recipe))
    write_text(folder / "resolved.yaml", "# Every value.\n" + dump_yaml(recipe, comments=reasons or {}))
    write_json(folder / "manifest.json", {
        "recipe": recipe, "method": "lora", "base": {"hash": "aa", "files": {"x": "y"}}, "data": "dd",
        "sources": ["ss"], "versions": {"torch": "2.13.0", **(versions or {})}, "hardware": {"cpu": "one"},
    })  # fmt: skip
    for step, loss in enumerate(losses, 1):
        run.metric(step=step, loss=loss, trained_tokens=tokens)
    run.metric(step=len(losses), eval_loss=losses[-1] + 0.1)
    train = {"steps": len(losses), "final_loss": losses[-1], "eval_loss": losses[-1] + 0.1, "best_eval_loss": None,
             "tokens_per_second": 512.0, "peak_bytes": 3 * 2**29, "seconds": 60.0}  # fmt: skip
    run.finish_stage("train", depends_on={}, result=train, seconds=64.0)
    run.finish_stage("evaluate", depends_on={}, result={}, seconds=6.0)
    results = [*([] if scores is None else [result(list(scores))]), *tasks]
    if results:
        write_json(folder / "eval" / "after.json", results_to_json(results, model="tuned"))
        base = [result([0.0] * one.n, name=one.name, metric=one.metric, settings=dict(one.settings)) for one in results]
        write_json(folder / "eval" / "before.json", results_to_json(base, model="base"))
        told = {"tasks": [{"name": one.name, "verdict": "better"} for one in results]}
        write_json(folder / "eval" / "comparison.json", told)
    return folder


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
