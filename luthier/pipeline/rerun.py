"""Repeat a run from its manifest, and say whether the numbers are equal (contract 10)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.pipeline.run import RunResult, run_recipe
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runs.manifest import library_versions
from luthier.runs.stages import differences
from luthier.runtime.errors import RecipeError

__all__ = ["RerunResult", "recipe_of_run", "rerun"]

EXACT_METRICS = ("loss", "grad_norm", "learning_rate", "eval_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunResult:
    """Old numbers against new ones."""

    result: RunResult
    equal: bool
    """Every logged loss, gradient norm, score and the final weights are the same to the last bit."""
    differences: list[str]
    """What is not equal, and what may explain it."""


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe a run was made with, overrides included.

    Raises:
        RecipeError: `folder` is no run folder.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        raise RecipeError(
            code="R730",
            message=f"{folder} is no run folder (it has no manifest.json)",
            hint="`luthier runs ls` lists them",
        )
    manifest = json.loads(file.read_text("utf-8"))
    recipe = recipe_from_dict(manifest["recipe"], origin=str(file))
    return recipe.model_copy(update={"output_dir": str(folder)})


def rerun(folder: Path, output_dir: Path, *, command: list[str]) -> RerunResult:
    """Run the recipe of `folder` again into `output_dir` and compare every number."""
    recipe = recipe_of_run(folder).model_copy(update={"output_dir": str(output_dir)})
    old = RunFolder(folder)
    text = (folder / "recipe.yaml").read_text("utf-8")
    result = run_recipe(recipe, recipe_text=text, restart=True, command=command)
    new = RunFolder(output_dir)
    found = [f"metrics {line}" for line in differences(_metrics(old), _metrics(new))]
    found += [f"scores {line}" for line in differences(_scores(old), _scores(new))]
    found += [f"weights {line}" for line in differences(_weights(old), _weights(new))]
    versions = json.loads((folder / "manifest.json").read_text("utf-8"))["versions"]
    causes = [f"version of {line}" for line in differences(versions, library_versions())]
    return RerunResult(result=result, equal=not found, differences=found + (causes if found else []))


def _metrics(run: RunFolder) -> dict[str, Any]:
    lines = run.read_lines("metrics.jsonl")
    return {f"step {line['step']} {name}": line[name] for line in lines for name in EXACT_METRICS if name in line}


def _scores(run: RunFolder) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for file in ("before.json", "after.json"):
        path = run.path / "eval" / file
        if path.is_file():
            tasks = json.loads(path.read_text("utf-8"))["tasks"]
            values |= {
                f"{file} {task['name']} row {row['ref']}": row["output"] for task in tasks for row in task["rows"]
            }
    return values


def _weights(run: RunFolder) -> dict[str, Any]:
    record = run.stage("train")
    return {"final": record.result["weights"]} if record else {}
