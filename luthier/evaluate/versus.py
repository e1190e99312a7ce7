"""Several models on the same tasks: every pair tested, the p-values corrected for their number.

Holm's step-down procedure (1979, Scandinavian Journal of Statistics 6: 65) keeps the chance of any false word at
1 - confidence, over all pairs and tasks of the call:

    p sorted ascending, m of them;  adjusted p(i) = max over j <= i of min(1, (m - j + 1) p(j))

Intervals are those of each pair by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from luthier.evaluate.compare import Comparison, compare_results
from luthier.evaluate.results import TaskResult
from luthier.evaluate.stats import holm

__all__ = ["Scored", "compare_many"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One model's results."""

    name: str
    results: Sequence[TaskResult]
    usage: dict[str, Any] | None = None
    """Requests, tokens and cost of an endpoint."""

    def to_json(self) -> dict[str, Any]:
        """As a score file, which `luthier compare` reads."""
        value: dict[str, Any] = {"model": self.name, "tasks": [result.to_json() for result in self.results]}
        return value if self.usage is None else {**value, "usage": self.usage}


def compare_many(models: Sequence[Scored], *, confidence: float = 0.95, prompts_differ: bool = False) -> dict[str, Any]:
    """Every pair of models on every task.

    Args:
        models: At least two, scored on the same tasks.
        confidence: Level of the intervals and, after the correction, of all words together.
        prompts_differ: As `compare_results`.

    Returns:
        `{correction, tests, confidence, pairs: [{first, second, ..., p_value, p_adjusted, verdict}]}`.

    Raises:
        RunFailed: two of them cannot be compared; see `compare_results`.
    """
    found: list[tuple[str, str, Comparison]] = [
        (
            one.name,
            other.name,
            compare_results(one.results, other.results, confidence=confidence, prompts_differ=prompts_differ),
        )
        for one, other in combinations(models, 2)
    ]
    pairs = [(first, second, task) for first, second, comparison in found for task in comparison.tasks]
    adjusted = holm([task.p_value for _, _, task in pairs])
    level = round(1.0 - confidence, 12)
    lines = []
    for (first, second, task), p_adjusted in zip(pairs, adjusted, strict=True):
        word = task.verdict if p_adjusted < level else "no evidence"
        value = {key: item for key, item in task.to_json().items() if key != "changed"}
        lines.append({"first": first, "second": second, **value, "p_adjusted": p_adjusted, "verdict": word})
    return {"correction": "Holm", "tests": len(pairs), "confidence": confidence, "pairs": lines}
