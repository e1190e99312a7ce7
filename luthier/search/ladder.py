"""Which rates to run for real, when the best is found, and how flat its neighbourhood is. Pure.

Rates are rungs of a ladder with two in each decade, 1 and 3: ..., 1e-4, 3e-4, 1e-3, ... First the proposal and its
neighbours; then, while the best is the lowest or the highest rate tried, the next one outward. A rate that diverged
counts as infinitely bad, so it bounds the search from above. The best is a minimum only with a worse rate on
either side of it.

The gain of a rate is (loss at the start - its held-out loss); a rate keeps the share gain / best gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Choice", "Outcome", "choose", "first_rates", "next_rate", "rung", "rung_index"]

LOWEST, HIGHEST = -20, 4
"""Rungs of 1e-10 and of 1e2: no rate of any use lies beyond."""
FLAT = 0.95
"""Share of the best gain that a rate must keep to count as equally good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a short run with one rate came to."""

    rate: float
    steps: int
    """Steps done; fewer than asked for if it diverged."""
    tokens: int
    train_loss: float | None
    """Smoothed, after the last step."""
    eval_loss: float | None
    """Held-out loss after the last step; None: it diverged."""
    diverged: str | None
    """Why, if it did."""
    seconds: float

    @property
    def score(self) -> float:
        """The held-out loss; infinite if it diverged."""
        return math.inf if self.eval_loss is None else self.eval_loss

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the runs say."""

    learning_rate: float
    eval_loss: float | None
    minimum: bool
    """There is a worse rate on either side; False: it is only the best of those tried."""
    edge: str | None
    """`lowest` or `highest` if it is that of the rates tried."""
    gain: float | None
    """Held-out loss at the start less that of the best."""
    kept: dict[str, float]
    """Share of the gain that each other rate keeps, by rate; negative: worse than not training."""
    flat: tuple[float, float]
    """The rates around the best, all tried, that keep 95% of the gain: from, to."""

    @property
    def usable(self) -> bool:
        """Worth to be put into a recipe."""
        return self.minimum and self.gain is not None and self.gain > 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def rung(index: int) -> float:
    """Rate of a rung: 0 is 1, 1 is 3, -1 is 0.3, 2 is 10."""
    decade, upper = divmod(index, 2)
    return float(f"{3 if upper else 1}e{decade}")


def rung_index(rate: float) -> int:
    """The rung nearest to a rate, by factor."""
    near = round(2.0 * math.log10(rate))
    index = min(range(near - 1, near + 2), key=lambda at: abs(math.log(rung(at) / rate)))
    return min(max(index, LOWEST), HIGHEST)


def first_rates(centre: float, count: int) -> list[float]:
    """`count` neighbouring rungs, the one nearest to `centre` first, then above and below it in turn."""
    middle = rung_index(centre)
    offsets = [0]
    for distance in range(1, count):
        offsets += [distance, -distance]
    return [rung(middle + offset) for offset in offsets[:count] if LOWEST <= middle + offset <= HIGHEST]


def next_rate(outcomes: Sequence[Outcome]) -> float | None:
    """The next rate outward while the best is at an edge; None when it is not, or the ladder ends."""
    choice = choose(outcomes, start_loss=None)
    if choice.edge is None:
        return None
    at = rung_index(choice.learning_rate) + (1 if choice.edge == "highest" else -1)
    if len(outcomes) == 1:
        at = rung_index(choice.learning_rate) + (1 if outcomes[0].diverged is None else -1)
    return rung(at) if LOWEST <= at <= HIGHEST else None


def choose(outcomes: Sequence[Outcome], *, start_loss: float | None) -> Choice:
    """The rate with the lowest held-out loss; of equal ones the lower rate. In whatever order the runs were made.

    Args:
        outcomes: At least one.
        start_loss: Held-out loss before the first step; None: no gains are computed.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.rate)
    scores = [outcome.score for outcome in ordered]
    best = min(range(len(ordered)), key=lambda index: (scores[index], index))
    edge = "lowest" if best == 0 else "highest" if best == len(ordered) - 1 else None
    gain = None if start_loss is None or not math.isfinite(scores[best]) else start_loss - scores[best]
    kept: dict[str, float] = {}
    low = high = best
    if start_loss is not None and gain is not None and gain > 0.0:
        shares = [(start_loss - score) / gain if math.isfinite(score) else -math.inf for score in scores]
        kept = {
            f"{ordered[index].rate:g}": share
            for index, share in enumerate(shares)
            if index != best and math.isfinite(share)
        }
        while low > 0 and shares[low - 1] >= FLAT:
            low -= 1
        while high < len(shares) - 1 and shares[high + 1] >= FLAT:
            high += 1
    return Choice(
        learning_rate=ordered[best].rate, eval_loss=ordered[best].eval_loss,
        minimum=edge is None and math.isfinite(scores[best]), edge=edge, gain=gain, kept=kept,
        flat=(ordered[low].rate, ordered[high].rate),
    )  # fmt: skip
