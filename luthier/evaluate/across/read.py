"""What is compared of one run, read from its folder. Whatever a run has not come to yet is None or empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.evaluate.across.curves import Curve, curves_of
from luthier.evaluate.results import TaskResult, read_results
from luthier.recipe.load import read_document
from luthier.recipe.reasons import reasons_of
from luthier.runs.folder import RunFolder
from luthier.runs.manifest import read_manifest
from luthier.runs.overview import STAGE_ORDER, require_run
from luthier.runtime.errors import LuthierError, Problem, RecipeError, RunFailed

__all__ = ["ComparedRun", "read_runs"]

MOST_RUNS = 26
"""One letter each."""
_RESULT = ("steps", "first_loss", "final_loss", "eval_loss", "best_eval_loss", "final_reward", "tokens",
           "trained_tokens", "tokens_per_second", "peak_bytes")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run."""

    folder: Path
    name: str
    """The shortest end of its path that no other run has."""
    base: str
    method: str
    objective: str
    settings: dict[str, Any]
    """Nested values of `resolved.yaml`; of `recipe.yaml` for a run that was not resolved yet."""
    resolved: bool
    reasons: dict[str, str]
    """Dotted key -> why a derived value is what it is."""
    manifest: dict[str, Any]
    before: tuple[TaskResult, ...]
    after: tuple[TaskResult, ...]
    verdicts: dict[str, str]
    """Task -> the run's own word on tuned against base."""
    preferences: dict[str, Any]
    """`eval/preferences.json`."""
    numbers: dict[str, Any]
    """Of the training: steps, losses (nats a trained token), tokens a second, peak in bytes; None where unknown."""
    train_seconds: float | None
    """In optimizer steps."""
    seconds: float
    """All finished stages."""
    curves: tuple[Curve, ...]


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read two or more run folders.

    Raises:
        RecipeError: fewer than two, too many, one twice, or folders that hold no run; all at once.
        RunFailed: a file of a run is damaged.
    """
    problems = _problems(folders)
    if problems:
        raise RecipeError(problems=problems)
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _problems(folders: Sequence[Path]) -> list[Problem]:
    problems = []
    if not 2 <= len(folders) <= MOST_RUNS:
        message = f"2 to {MOST_RUNS} runs can be compared, got {len(folders)}"
        problems.append(Problem(code="E570", message=message, hint="name more, or fewer, run folders"))
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (first := seen.setdefault(folder.resolve(), folder)) is not folder:
            message = f"{folder} is named twice" if first == folder else f"{folder} and {first} are the same folder"
            problems.append(Problem(code="E570", message=message, hint="name each run once"))
        try:
            require_run(folder)
        except LuthierError as error:
            problems += error.problems
    return problems


def _names(folders: Sequence[Path]) -> list[str]:
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> ComparedRun:
    run = require_run(folder)
    manifest = read_manifest(folder)
    settings, resolved = _settings(run)
    text = (folder / "resolved.yaml").read_text("utf-8") if resolved else ""
    train, comparison = run.stage("train"), run.read_json("eval/comparison.json") or {}
    result = train.result if train else {}
    finished = [record for stage in STAGE_ORDER if (record := run.stage(stage)) is not None]
    metrics = [line for line in run.read_lines("metrics.jsonl") if isinstance(line, dict)]
    measured = run.read_json("measured.json") or {}
    numbers = {key: result.get(key, measured.get(key)) for key in _RESULT}
    return ComparedRun(
        folder=folder,
        name=name,
        base=str((settings.get("model") or {}).get("name_or_path", "")),
        method=str((settings.get("method") or {}).get("name", manifest.get("method", ""))),
        objective=str((settings.get("objective") or {}).get("name", "sft")),
        settings=settings,
        resolved=resolved,
        reasons={key: reason for key, _, reason in reasons_of(text)},
        manifest=manifest,
        before=_scores(run, "eval/before.json"),
        after=_scores(run, "eval/after.json"),
        verdicts={str(task["name"]): str(task["verdict"]) for task in comparison.get("tasks", [])},
        preferences=run.read_json("eval/preferences.json") or {},
        numbers=numbers,
        train_seconds=result.get("seconds", train.seconds if train else None),
        seconds=sum(record.seconds for record in finished),
        curves=curves_of(metrics),
    )


def _settings(run: RunFolder) -> tuple[dict[str, Any], bool]:
    """Values of the resolved recipe, else of the recipe; and whether they are resolved."""
    resolved = (run.path / "resolved.yaml").is_file()
    file = run.path / ("resolved.yaml" if resolved else "recipe.yaml")
    document = read_document(file)
    if document.problems or not isinstance(document.value, dict):
        hint = "`luthier run` with its recipe.yaml writes it again" if resolved else None
        raise RunFailed(code="R722", message=f"{file} is damaged: it is no YAML mapping of a recipe", hint=hint)
    return document.value, resolved


def _scores(run: RunFolder, name: str) -> tuple[TaskResult, ...]:
    return tuple(read_results(run.path / name)) if (run.path / name).is_file() else ()
