"""Is one model better than another? A paired test on the same rows, and one of three answers.

Scores may only be compared when everything but the model is the same. What counts as the same is
the table `BINDING`; any difference is refused by name, because a gain that comes from another
prompt, another decoding or other rows would be reported as a gain of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.evaluate.forgetting.suite import forgetting_cost
from luthier.evaluate.results import TaskResult, read_results
from luthier.evaluate.stats import PairedTest, Verdict, paired_means, paired_proportions, verdict
from luthier.runtime.errors import Problem, RunFailed

__all__ = [
    "BINDING", "Comparison", "TaskComparison", "compare_files", "compare_results", "compare_task", "task_differences",
]  # fmt: skip

BINDING = {
    "decoding": "decoding",
    "max_new_tokens": "longest answer (`max_new_tokens`)",
    "stop_ids": "stop tokens",
    "template_hash": "chat template",
    "template_kwargs": "`chat_template_kwargs`",
    "num_fewshot": "number of worked examples",
    "fewshot_hash": "worked examples",
    "data_hash": "content of the rows",
    "pattern": "`pattern`",
    "grader": "grader",
    "harness": "task, or version, of lm-evaluation-harness",
    "inputs_hash": "tokens of the prompts (tokenizer)",
}
"""Settings that must be equal, and how they are called in a message. Batch size, device and dtype may differ."""

UNKNOWN_OF_A_SERVER = ("stop_ids", "template_hash", "template_kwargs", "inputs_hash")
"""What a server does with its messages: part of the model that is compared, not of the setting."""

OF_PROMPTS = ("num_fewshot", "fewshot_hash", "data_hash", "inputs_hash")
"""What differs between two prompts for the same rows (a system message counts as part of the rows as read)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskComparison:
    """Two models on one task."""

    name: str
    metric: str
    n: int
    before: float
    after: float
    delta: float
    """after - before; for `loss` a negative one is the better one."""
    low: float
    high: float
    """Interval of `delta`."""
    confidence: float
    test: str
    p_value: float
    verdict: Verdict
    wins: int
    """Rows on which the second model did better."""
    losses: int
    changed: tuple[int, ...]
    """Indices of the rows whose score changed."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in `eval/comparison.json`."""
        return {name: getattr(self, name) for name in self.__slots__} | {"changed": list(self.changed)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same tasks."""

    tasks: tuple[TaskComparison, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `eval/comparison.json`."""
        return {"tasks": [task.to_json() for task in self.tasks]}


def compare_files(before: Path, after: Path, *, confidence: float = 0.95) -> dict[str, Any]:
    """Compare two score files; returns the content of `eval/comparison.json`.

    Raises:
        RunFailed: a file is missing or damaged, or the two cannot be compared.
    """
    first, second = read_results(before), read_results(after)
    value = compare_results(first, second, confidence=confidence).to_json()
    cost = forgetting_cost(first, second, confidence=confidence)
    return value if cost is None else {**value, "forgetting": cost}


def compare_results(
    before: Sequence[TaskResult],
    after: Sequence[TaskResult],
    *,
    confidence: float = 0.95,
    prompts_differ: bool = False,
) -> Comparison:
    """Compare two models task by task, in the order of `before`.

    Args:
        before: Scores of the first model.
        after: Scores of the second, on the same tasks.
        confidence: Level of the intervals; 1 - confidence is the level of the tests, each task by itself.
        prompts_differ: The prompts are what is compared: the rows must be the same, what was made of them need not.

    Raises:
        RunFailed: something besides the model differs; all differences are named.
    """
    second = {result.name: result for result in after}
    problems = _unmatched([result.name for result in before], [result.name for result in after])
    for result in before:
        if result.name in second:
            problems += task_differences(result, second[result.name], prompts_differ=prompts_differ)
    if problems:
        raise RunFailed(problems=problems)
    return Comparison(tuple(compare_task(result, second[result.name], confidence) for result in before))


def compare_task(before: TaskResult, after: TaskResult, confidence: float) -> TaskComparison:
    """The paired test of one task; `task_differences` must have found nothing."""
    first, second = _scores(before), _scores(after)
    higher = before.higher_is_better
    test = _test(before, after, first, second, confidence)
    better = sum(1 for a, b in zip(first, second, strict=True) if (b > a if higher else b < a))
    changed = tuple(index for index, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return TaskComparison(
        name=before.name,
        metric=before.metric,
        n=before.n,
        before=before.score,
        after=after.score,
        delta=test.delta,
        low=test.interval.low,
        high=test.interval.high,
        confidence=confidence,
        test=test.test,
        p_value=test.p_value,
        verdict=verdict(test, confidence=confidence, higher_is_better=higher),
        wins=better,
        losses=len(changed) - better,
        changed=changed,
    )


def _test(
    before: TaskResult, after: TaskResult, first: list[float], second: list[float], confidence: float
) -> PairedTest:
    if before.metric == "loss":
        sums = [[row["secondary"]["nll"] for row in result.rows] for result in (before, after)]
        weights = [row["secondary"]["weight"] for row in before.rows]
        return paired_means(sums[0], sums[1], weights, confidence=confidence)
    if {*first, *second} <= {0.0, 1.0}:
        return paired_proportions(first, second, confidence=confidence)
    return paired_means(first, second, [1.0] * len(first), confidence=confidence)


def _scores(result: TaskResult) -> list[float]:
    return [float(row["score"]) for row in result.rows]


def _unmatched(before: Sequence[str], after: Sequence[str]) -> list[Problem]:
    problems = []
    for here, there, where in ((before, after, "first"), (after, before, "second")):
        for name in [name for name in here if name not in there]:
            message = f"task `{name}` was scored with the {where} model only"
            problems.append(Problem(code="E540", message=message, hint="score both models on the same tasks"))
    if not before and not after:
        problems.append(Problem(code="E540", message="no task was scored", hint="add one to `evaluate.tasks`"))
    return problems


def task_differences(before: TaskResult, after: TaskResult, *, prompts_differ: bool = False) -> list[Problem]:
    """Everything that makes two results of one task incomparable, one problem (E541) each."""
    served = any("server" in result.settings for result in (before, after))
    free = (*(UNKNOWN_OF_A_SERVER if served else ()), *(OF_PROMPTS if prompts_differ else ()))
    binding = {key: what for key, what in BINDING.items() if key not in free}
    found = [
        (what, mine, theirs)
        for what, mine, theirs in (
            ("version of the task", before.version, after.version),
            ("metric", before.metric, after.metric),
            ("number of rows", before.n, after.n),
            *((what, before.settings.get(key), after.settings.get(key)) for key, what in binding.items()),
        )
        if mine != theirs
    ]
    if not found:
        asked = "ref" if prompts_differ else "messages" if served else "prompt"
        found = _row_differences(before.rows, after.rows, asked)
    return [
        Problem(
            code="E541",
            message=f"task `{before.name}` cannot be compared: {what} differs ({_short(mine)} and {_short(theirs)})",
            hint="score both models with the same recipe",
        )
        for what, mine, theirs in found
    ]


def _row_differences(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], asked: str
) -> list[tuple[str, Any, Any]]:
    """The first row that is not the same question, whatever the hashes say."""
    for index, (mine, theirs) in enumerate(zip(before, after, strict=True)):
        for key in (asked, "reference"):
            if mine[key] != theirs[key]:
                return [(f"{key} of row {index} ({mine['ref']})", mine[key], theirs[key])]
        weights = [row.get("secondary", {}).get("weight") for row in (mine, theirs)]
        if weights[0] != weights[1]:
            return [(f"scored weight of row {index} ({mine['ref']})", *weights)]
    return []


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
