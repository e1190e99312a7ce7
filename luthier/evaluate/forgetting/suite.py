"""`builtin:forgetting` as tasks, and what a tune cost over all of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.types import Conversation, RowRef
from luthier.evaluate.forgetting.rows import PARTS, SEED
from luthier.evaluate.results import TaskResult
from luthier.evaluate.stats import paired_proportions, verdict
from luthier.evaluate.task import Task, TaskRow
from luthier.recipe.builtin import FORGETTING
from luthier.recipe.schema import TaskSpec
from luthier.runtime.hashing import hash_json

__all__ = ["VERSION", "forgetting_cost", "forgetting_line", "forgetting_tasks"]

VERSION = 1
"""Rises when scores would change."""

_NAME = "forgetting"
_ILIKE = {
    "type": "string_check", "name": "names the answer", "operation": "ilike",
    "input": "{{ sample.output_text }}", "reference": "{{ item.reference }}",
}  # fmt: skip
_SCORING: Mapping[str, tuple[str, Mapping[str, Any] | None, int]] = {
    "arithmetic": ("number", None, 32),
    "copying": ("contains", None, 48),
    "format": ("json_exact", None, 64),
    "facts": ("grader", _ILIKE, 32),
}
"""Metric, grader and longest answer of each part."""


def forgetting_tasks(spec: TaskSpec) -> list[Task]:
    """The parts as tasks `forgetting.arithmetic`, ...; `limit` and `system` of the recipe hold for each."""
    assert spec.name == FORGETTING
    return [_task(spec, part) for part in PARTS]


def _task(spec: TaskSpec, part: str) -> Task:
    metric, grader, most = _SCORING[part]
    pairs = PARTS[part](random.Random(SEED))[: spec.limit]
    system = [{"role": "system", "content": spec.system}] if spec.system else []
    rows = []
    for index, (question, answer) in enumerate(pairs):
        messages = [*system, {"role": "user", "content": question}]
        ref = RowRef(file=f"{FORGETTING}/{part}", line=index + 1)
        whole = Conversation(kind="chat", ref=ref, messages=(*messages, {"role": "assistant", "content": answer}))
        rows.append(TaskRow(ref=ref, conversation=whole, messages=messages, reference=answer))
    return Task(
        name=f"{_NAME}.{part}",
        version=VERSION,
        metric=metric,
        pattern=None,
        secondary=(),
        rows=tuple(rows),
        max_new_tokens=most,
        limit=spec.limit,
        num_fewshot=0,
        fewshot_hash=None,
        data_hash=hash_json([spec.system, pairs]),
        grader=grader,
    )


def forgetting_cost(
    before: Sequence[TaskResult], after: Sequence[TaskResult], *, confidence: float
) -> dict[str, Any] | None:
    """All rows of the suite together, McNemar's test; None when it was not scored.

    Args:
        before: Results of the untouched model.
        after: Results of the tuned one, on the same tasks.
        confidence: Level of interval and test.
    """
    first, second = (
        [float(row["score"]) for result in results if result.name.startswith(f"{_NAME}.") for row in result.rows]
        for results in (before, after)
    )
    if not first or len(first) != len(second):
        return None
    test = paired_proportions(first, second, confidence=confidence)
    cost = {
        "n": len(first), "before": sum(first) / len(first), "after": sum(second) / len(second), "delta": test.delta,
        "low": test.interval.low, "high": test.interval.high, "confidence": confidence, "test": test.test,
        "p_value": test.p_value, "verdict": verdict(test, confidence=confidence, higher_is_better=True),
    }  # fmt: skip
    return {**cost, "said": forgetting_line(cost)}


def forgetting_line(cost: Mapping[str, Any]) -> str:
    """The cost in words."""
    said = {
        "worse": "the tune cost general skill",
        "better": "general skill rose",
        "no evidence": "no evidence of a change in general skill",
    }[cost["verdict"]]
    return (
        f"general skill (arithmetic, copying, format, facts; {cost['n']} rows): {cost['before']:.3f} -> "
        f"{cost['after']:.3f}, difference {cost['delta']:+.3f} [{cost['low']:+.3f}, {cost['high']:+.3f}], "
        f"p = {cost['p_value']:.2g}: {said}"
    )
