"""Held-out prompts: dealt to processes in equal batches, each answered once, each counted once.

Collective operations need as many completions from every process. What a deal lacks for that is filled up with prompts
under a name that ends in `~`: they are sampled, but no reward looks at them and no mean counts them. The means are over
prompts, not over batches, so they do not depend on how prompts were dealt.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Answered", "Deal", "HeldOut", "deal", "is_filling"]

_FILLING = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """Names of prompts as TRL's data set holds them."""

    names: tuple[str, ...]
    """A multiple of `batch` x processes where there are several."""
    batch: int
    """Prompts that a process answers at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer to one held-out prompt."""

    name: str
    rewards: tuple[float, ...]
    """In the order of the recipe; NaN where one says nothing."""
    tokens: int
    clipped: bool
    """Cut at the longest length."""


def deal(names: Sequence[str], *, at_most: int, processes: int) -> Deal:
    """Batches of at most `at_most` prompts a process; for one process nothing is filled up."""
    if processes == 1 or not names:
        return Deal(names=tuple(names), batch=at_most)
    rounds = math.ceil(len(names) / (at_most * processes))
    batch = math.ceil(len(names) / (rounds * processes))
    missing = rounds * processes * batch - len(names)
    filling = [f"{names[n % len(names)]}{_FILLING}" for n in range(missing)]
    return Deal(names=(*names, *filling), batch=batch)


def is_filling(name: str) -> bool:
    """The prompt stands there so that all processes have as many."""
    return name.endswith(_FILLING)


class HeldOut:
    """Answers of one evaluation."""

    def __init__(self, labels: Sequence[str], weights: Sequence[float]) -> None:
        self._labels, self._weights = list(labels), list(weights)
        self._answers: dict[str, Answered] = {}

    def add(self, answers: Sequence[Answered]) -> None:
        """Of a batch of all processes."""
        self._answers |= {answer.name: answer for answer in answers if not is_filling(answer.name)}

    def take(self) -> dict[str, Any]:
        """Means under the names of the metrics, and start over; None where no answer was scored."""
        answers, self._answers = list(self._answers.values()), {}
        sums = [total for answer in answers if (total := self._sum(answer)) is not None]
        found: dict[str, Any] = {
            "eval_reward": _mean(sums), "eval_reward_std": statistics.stdev(sums) if len(sums) > 1 else 0.0,
            "eval_completion_tokens": _mean([answer.tokens for answer in answers]),
            "eval_clipped_completions": _mean([float(answer.clipped) for answer in answers]),
        }  # fmt: skip
        for index, label in enumerate(self._labels):
            known = [answer.rewards[index] for answer in answers if not math.isnan(answer.rewards[index])]
            found[f"eval_reward/{label}"] = _mean(known)
        return found

    def _sum(self, answer: Answered) -> float | None:
        pairs = zip(answer.rewards, self._weights, strict=True)
        known = [value * weight for value, weight in pairs if not math.isnan(value)]
        return sum(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
