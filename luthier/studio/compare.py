"""Several runs side by side: `luthier.evaluate.across`, in the words of the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.runtime.errors import Problem, RecipeError
from luthier.studio.clean import clean, finite
from luthier.studio.evals import answer_of, question_of
from luthier.studio.names import as_argument
from luthier.studio.recipes.check import problem_record
from luthier.studio.runs.logs import metric_record, read_all, thin

if TYPE_CHECKING:
    from luthier.evaluate.across import Comparison
    from luthier.evaluate.across.pairs import Group

__all__ = ["Compared", "compared", "compared_rows"]

MOST = 6
_POINTS = 1_000
_FACTS = (
    "steps", "tokens", "trained_tokens", "tokens_per_second", "peak_bytes", "final_loss", "eval_loss",
    "best_eval_loss", "final_reward",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison and the scores behind it."""

    comparison: Comparison
    groups: Sequence[Group]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Compared:
        """Compare; permutation tests take seconds.

        Raises:
            RecipeError, RunFailed: as `compare_runs`.
        """
        from luthier.evaluate.across import compare_runs
        from luthier.evaluate.across.pairs import groups_of

        comparison = compare_runs(folders, rows=0)
        return cls(comparison=comparison, groups=groups_of(comparison.runs))


def compared(found: Compared, lines: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """The whole answer."""
    runs = found.comparison.runs
    number = {run.name: index for index, run in enumerate(runs)}
    tasks = list(dict.fromkeys(result.name for run in runs for result in run.after))
    absent = "(absent)"
    value = {
        "runs": list(lines),
        "config": [
            {"key": item.key, "values": [None if one == absent else one for one in item.values],
             "reasons": [reason or None for reason in item.reasons]}
            for item in found.comparison.settings
        ],
        "curves": [{"run": line["id"], "rows": _curve(folder)} for line, folder in zip(lines, folders, strict=True)],
        "table": [_task(task, found, number) for task in tasks], "facts": _facts(runs), "tasks": tasks,
        "problems": [_problem(item) for item in found.comparison.not_tested],
        "command": shlex.join(["luthier", "compare", *map(as_argument, folders, lines)]),
    }  # fmt: skip
    cleaned: dict[str, Any] = clean(value)
    return cleaned


def _curve(folder: Path) -> list[dict[str, Any]]:
    rows, _ = read_all(folder / "metrics.jsonl")
    return thin([metric_record(line, value) for line, value in rows], _POINTS)[0]


def _task(task: str, found: Compared, number: Mapping[str, int]) -> dict[str, Any]:
    runs = found.comparison.runs
    results = [next((result for result in run.after if result.name == task), None) for run in runs]
    known = next(result for result in results if result is not None)
    base = next((result for run in runs for result in run.before if result.name == task), None)
    tests = [
        {"a": number[pair.first], "b": number[pair.second], "delta": pair.test.delta, "low": pair.test.low,
         "high": pair.test.high, "p": pair.test.p_value, "p_holm": pair.p_adjusted, "test": pair.test.test,
         "verdict": pair.verdict}
        for pair in found.comparison.pairs
        if pair.test.name == task
    ]  # fmt: skip
    return {
        "task": task, "metric": known.metric, "n": known.n, "higher_is_better": known.higher_is_better,
        "cells": [None if result is None else _cell(result) for result in results],
        "base": None if base is None else _cell(base), "tests": tests,
    }  # fmt: skip


def _cell(result: Any) -> dict[str, Any]:
    return {"score": result.score, "low": result.low, "high": result.high, "n": result.n}


def _facts(runs: Sequence[Any]) -> list[dict[str, Any]]:
    rows = [{"name": name, "values": [finite(run.numbers.get(name)) for run in runs]} for name in _FACTS]
    rows.append({"name": "seconds", "values": [finite(run.seconds) for run in runs]})
    return [row for row in rows if any(value is not None for value in row["values"])]


def _problem(item: Any) -> dict[str, Any]:
    against = f" with {', '.join(item.against)}" if item.against else ""
    message = f"{item.task}: {', '.join(item.runs)} cannot be compared{against}: {'; '.join(item.reasons)}"
    return problem_record(Problem(code="W133", message=message))


def compared_rows(found: Compared, task: str, *, offset: int, limit: int, sort: str, only: str) -> dict[str, Any]:
    """Rows of a task with every run's answer, those that differ most first.

    Raises:
        RecipeError: W132: no run has scores of this task; W103: an unknown order.
    """
    if sort not in ("change", "row") or only not in ("changed", "all"):
        raise RecipeError(code="W103", message="sort: change, row; only: changed, all")
    group = max((one for one in found.groups if one.task == task), key=lambda one: len(one.runs), default=None)
    if group is None:
        raise RecipeError(code="W132", message=f"none of these runs has scores of a task {task[:100]!r}")
    same = list(zip(*(result.rows for result in group.results), strict=True))
    spread = [_spread(rows) for rows in same]
    chosen = [index for index in range(len(same)) if only == "all" or spread[index] > 0]
    if sort == "change":
        chosen.sort(key=lambda index: (-spread[index], index))
    rows = [
        _row(index, same[index], group.runs, len(found.comparison.runs)) for index in chosen[offset : offset + limit]
    ]
    return {"total": len(chosen), "offset": offset, "limit": limit, "rows": clean(rows)}


def _spread(rows: Sequence[Mapping[str, Any]]) -> float:
    scores = [finite(row.get("score")) or 0.0 for row in rows]
    return max(scores) - min(scores)


def _row(index: int, rows: Sequence[Mapping[str, Any]], runs: Sequence[int], count: int) -> dict[str, Any]:
    answers: list[Any] = [None] * count
    for place, row in zip(runs, rows, strict=True):
        answers[place] = answer_of("", row)
    return {**question_of(index, rows[0]), "answers": answers}
