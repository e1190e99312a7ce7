"""Repeat a run from its manifest, and say whether the numbers are equal (contract 10)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.pipeline.run import RunResult, run_recipe
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.paths import missing_path
from luthier.recipe.push_rules import unpublished
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runs.manifest import library_versions, read_manifest
from luthier.runs.stages import differences
from luthier.runtime.errors import RecipeError

__all__ = ["RerunResult", "recipe_of_run", "rerun"]

PATH_KEYS = (
    "name_or_path",
    "tokenizer",
    "chat_template",
    "path",
    "fewshot_path",
    "include_path",
    "init_from",
    "spectrum_file",
    "accelerate_config",
    "deepspeed_config",
)
EXACT_METRICS = ("loss", "grad_norm", "learning_rate", "eval_loss", "reward", "eval_reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunResult:
    """Old numbers against new ones."""

    result: RunResult
    equal: bool
    """Every logged loss, gradient norm, score and the final weights are the same to the last bit."""
    differences: list[str]
    """What is not equal, and what may explain it."""


def recipe_of_run(folder: Path, *, to_run: bool = False) -> Recipe:
    """The recipe a run was made with, overrides included; relative paths start where the run was made.

    Args:
        folder: The run folder.
        to_run: All files it names must be there. Talking and merging need none of the rows.

    Raises:
        RecipeError: `folder` is no run folder, or files are missing.
        RunFailed: its manifest is damaged.
    """
    file = folder / "manifest.json"
    manifest = read_manifest(folder)
    if not manifest:
        raise RecipeError(
            code="R730",
            message=f"{folder} is no run folder (it has no manifest.json)",
            hint="`luthier runs ls` lists them",
        )
    value = _from_there(manifest["recipe"], Path(manifest.get("working_directory", ".")))
    recipe = recipe_from_dict(value, origin=str(file)) if to_run else Recipe.model_validate(value)
    return recipe.model_copy(update={"output_dir": str(folder)})


def _from_there(value: Any, there: Path, key: str = "") -> Any:
    """A stored recipe with the relative paths that lead somewhere from `there` made absolute."""
    if isinstance(value, dict):
        return {name: _from_there(item, there, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_there(item, there, key) for item in value]
    if key == "python" and isinstance(value, str):  # a reward: FILE:FUNCTION
        file, colon, function = value.rpartition(":")
        return f"{_from_there(file, there, 'path')}{colon}{function}"
    if key == "lm_eval" and isinstance(value, str) and value.endswith((".yaml", ".yml")):
        key = "path"
    if key not in PATH_KEYS or not isinstance(value, str) or not value:
        return value
    absolute = os.path.normpath(there / value)
    return absolute if not value.startswith("~") and missing_path(absolute) is None else value


def rerun(folder: Path, output_dir: Path, *, command: list[str]) -> RerunResult:
    """Run the recipe of `folder` again into `output_dir` and compare every number."""
    recipe = recipe_of_run(folder, to_run=True).model_copy(update={"output_dir": str(output_dir)})
    recipe, old = _for_one_process(recipe), RunFolder(folder)
    text = (folder / "recipe.yaml").read_text("utf-8")
    result = run_recipe(unpublished(recipe), recipe_text=text, restart=True, command=command)
    new = RunFolder(output_dir)
    found = [f"metrics {line}" for line in differences(_metrics(old), _metrics(new))]
    found += [f"scores {line}" for line in differences(_scores(old), _scores(new))]
    found += [f"weights {line}" for line in differences(_weights(old), _weights(new))]
    versions = read_manifest(folder)["versions"]
    causes = [f"version of {line}" for line in differences(versions, library_versions())]
    causes += _processes(old, new)
    return RerunResult(result=result, equal=not found, differences=found + (causes if found else []))


def _for_one_process(recipe: Recipe) -> Recipe:
    """Without copies of shards and shared sequences, which one process cannot have and which change no number."""
    section = recipe.distributed
    several = [name for name in ("dp_replicate_size", "sequence_parallel_size") if getattr(section, name) > 1]
    if not several:
        return recipe
    return recipe.model_copy(update={"distributed": section.model_copy(update=dict.fromkeys(several, 1))})


def _processes(old: RunFolder, new: RunFolder) -> list[str]:
    """A run of several processes is repeated in one: sums are rounded otherwise, and a step may be another one."""
    was, now = ((stage.result.get("processes") or 1) if (stage := run.stage("train")) else 1 for run in (old, new))
    if was == now:
        return []
    return [
        f"processes: {was} -> {now}; steps of `tokens_per_step` are the same up to rounding, with "
        "`per_device_train_batch_size` they are smaller now"
    ]


def _metrics(run: RunFolder) -> dict[str, Any]:
    lines = run.read_lines("metrics.jsonl")
    return {f"step {line['step']} {name}": line[name] for line in lines for name in EXACT_METRICS if name in line}


def _scores(run: RunFolder) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for file in ("before.json", "after.json"):
        path = run.path / "eval" / file
        if path.is_file():
            tasks = json.loads(path.read_text("utf-8"))["tasks"]
            # By place: the same row has another name when the run is repeated from another folder.
            values |= {
                f"{file} {task['name']} row {place}": {"output": row["output"], "score": row["score"]}
                for task in tasks
                for place, row in enumerate(task["rows"], start=1)
            }
    return values


def _weights(run: RunFolder) -> dict[str, Any]:
    record = run.stage("train")
    return {"final": record.result["weights"]} if record else {}
