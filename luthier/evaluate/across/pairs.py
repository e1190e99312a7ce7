"""Paired tests between runs, and which runs may be tested against each other at all.

Two runs meet on a task only if everything but the model is the same (`evaluate.compare.BINDING`, and the rows one by
one). Runs that agree form a group; pairs are tested inside a group, and between groups the differences are said.
All p-values of the call are corrected together (Holm, `evaluate.versus`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from luthier.evaluate.across.read import ComparedRun
from luthier.evaluate.compare import TaskComparison, compare_task, task_differences
from luthier.evaluate.results import TaskResult
from luthier.evaluate.stats import holm
from luthier.runtime.console import progress, quiet_progress

__all__ = ["Group", "NotTested", "Pair", "groups_of", "not_tested", "tested_pairs"]

_QUICK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs whose scores on one task may be compared."""

    task: str
    runs: tuple[int, ...]
    """Indices, ascending."""
    results: tuple[TaskResult, ...]
    """Of those runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two runs on one task; the second is called better or worse than the first."""

    first: str
    second: str
    test: TaskComparison
    p_adjusted: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """The test, the corrected p-value, and the word that holds after the correction."""
        value = {key: item for key, item in self.test.to_json().items() if key != "changed"}
        return {
            "task": value.pop("name"), "first": self.first, "second": self.second, **value,
            "p_adjusted": self.p_adjusted, "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTested:
    """Runs that one task cannot compare with the others, and why."""

    task: str
    runs: tuple[str, ...]
    against: tuple[str, ...]
    """Empty: the task was not scored in `runs`."""
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As lists."""
        return {
            "task": self.task, "runs": list(self.runs), "against": list(self.against), "reasons": list(self.reasons),
        }  # fmt: skip


def groups_of(runs: Sequence[ComparedRun]) -> list[Group]:
    """Runs that may be compared, task by task; a run that agrees with no other is a group of its own."""
    found = []
    for task in _tasks(runs):
        groups: list[list[tuple[int, TaskResult]]] = []
        for index, run in enumerate(runs):
            result = _result(run, task)
            if result is None:
                continue
            for group in groups:
                if not task_differences(group[0][1], result):
                    group.append((index, result))
                    break
            else:
                groups.append([(index, result)])
        found += [
            Group(task=task, runs=tuple(i for i, _ in group), results=tuple(result for _, result in group))
            for group in groups
        ]
    return found


def tested_pairs(
    runs: Sequence[ComparedRun], groups: Sequence[Group], *, confidence: float, against_first: bool
) -> tuple[Pair, ...]:
    """Every pair inside a group, or each run against the first one.

    Args:
        runs: The runs.
        groups: From `groups_of`.
        confidence: Level of the intervals and, after the correction, of all words together.
        against_first: Only pairs with the first run: fewer tests, so smaller differences can be told.
    """
    chosen = [
        (group, one, other)
        for group in groups
        for one, other in combinations(range(len(group.runs)), 2)
        if not against_first or group.runs[one] == 0
    ]
    tests = []
    # A permutation test over some hundred rows takes a second, twenty runs make 190 pairs.
    with quiet_progress() if len(chosen) < _QUICK else nullcontext(), progress("testing", len(chosen), "pairs") as bar:
        for group, one, other in chosen:
            tests.append(compare_task(group.results[one], group.results[other], confidence))
            bar.advance()
    adjusted = holm([test.p_value for test in tests])
    level = round(1.0 - confidence, 12)
    return tuple(
        Pair(
            first=runs[group.runs[one]].name,
            second=runs[group.runs[other]].name,
            test=test,
            p_adjusted=p_adjusted,
            verdict=test.verdict if p_adjusted < level else "no evidence",
        )
        for (group, one, other), test, p_adjusted in zip(chosen, tests, adjusted, strict=True)
    )


def not_tested(runs: Sequence[ComparedRun], groups: Sequence[Group]) -> tuple[NotTested, ...]:
    """Why runs do not meet: other groups against the first one of each task, then runs without the task."""
    found = []
    for task in _tasks(runs):
        own = [group for group in groups if group.task == task]
        for group in own[1:]:
            problems = task_differences(own[0].results[0], group.results[0])
            prefix = f"task `{task}` cannot be compared: "
            found.append(
                NotTested(
                    task=task,
                    runs=tuple(runs[index].name for index in group.runs),
                    against=tuple(runs[index].name for index in own[0].runs),
                    reasons=tuple(problem.message.removeprefix(prefix) for problem in problems),
                )
            )
        without = tuple(run.name for run in runs if _result(run, task) is None)
        if without:
            found.append(NotTested(task=task, runs=without, against=(), reasons=("not scored",)))
    return tuple(found)


def _tasks(runs: Sequence[ComparedRun]) -> list[str]:
    return list(dict.fromkeys(result.name for run in runs for result in run.after))


def _result(run: ComparedRun, task: str) -> TaskResult | None:
    return next((result for result in run.after if result.name == task), None)
