"""The curve of a range test: smoothed losses over rising rates, where it ends, and what it proposes. Pure.

Smoothing is an exponential mean without the bias of its start (as in Adam, arXiv:1412.6980, section 3):

    m_n = beta m_(n-1) + (1 - beta) loss_n,  m_0 = 0        smoothed_n = m_n / (1 - beta^n)

Diverged: a loss that is not finite, or smoothed > best + (k - 1) x max(|best|, |first| / 2), where best is the lowest
smoothed loss so far. While best is above half of the first loss this is `k x best`; the other half keeps a loss
that comes near 0, or below, from being called diverged for a ripple.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Curve", "Judge", "Point", "Smoother", "proposal", "steepest"]

BETA = 0.9
"""Of the smoothing: a mean over about ten steps."""
LIMIT = 2.0
"""k of the divergence."""
LEAST_FALL = 0.01
"""Share of the first loss by which the curve must fall to propose anything."""
FEWEST_POINTS = 5
"""In a curve, and in a slope."""
HALF_WINDOW = math.sqrt(10.0)
"""The slope at a rate is taken from a third of it to three times it."""


@dataclass(slots=True)
class Smoother:
    """Exponential mean of a series, unbiased from its first value on."""

    beta: float = BETA
    _mean: float = 0.0
    _count: int = 0

    def add(self, value: float) -> float:
        """Take the next value; returns the mean so far."""
        self._count += 1
        self._mean = self.beta * self._mean + (1.0 - self.beta) * value
        return self._mean / (1.0 - self.beta**self._count)


@dataclass(slots=True)
class Judge:
    """Watches losses, and says when they have diverged."""

    limit: float = LIMIT
    smoother: Smoother = field(default_factory=Smoother)
    first: float | None = None
    best: float = math.inf
    smoothed: float = math.nan

    def add(self, loss: float) -> str | None:
        """Take the loss of the next step; the reason if this is divergence, else None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        self.smoothed = self.smoother.add(loss)
        if self.first is None:
            self.first = self.smoothed
        self.best = min(self.best, self.smoothed)
        bound = self.best + (self.limit - 1.0) * max(abs(self.best), abs(self.first) / 2.0)
        if self.smoothed > bound:
            return f"the smoothed loss {self.smoothed:.4g} is above {bound:.4g} (best so far {self.best:.4g})"
        return None


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a range test."""

    rate: float
    loss: float
    smoothed: float


@dataclass(slots=True, kw_only=True)
class Curve:
    """A range test as far as it went."""

    low: float
    high: float
    """Rates it was to go over."""
    steps: int
    points: list[Point] = field(default_factory=list)
    stopped: str | None = None
    """Why it ended before `high`; None if it did not."""
    stopped_at: float | None = None
    """Rate of the step that diverged."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def steepest(points: Sequence[Point]) -> float | None:
    """The rate at which the loss falls fastest per factor in the rate; None if nowhere.

    The slope at a point is that of the least-squares line through the losses themselves (not the smoothed ones, which
    lag) over the decade around it; the first steps of a smoothed curve are mostly noise, and a line over a decade is
    not. Only points up to the lowest smoothed loss count, and only with a decade around them that has five points.
    """
    slopes = {}
    for point in points[: _lowest(points) + 1]:
        low, high = point.rate / HALF_WINDOW, point.rate * HALF_WINDOW
        around = [other for other in points if low <= other.rate <= high]
        if points[0].rate <= low * 1.001 and high <= points[-1].rate * 1.001 and len(around) >= FEWEST_POINTS:
            slopes[point.rate] = _slope(around)
    falling = {rate: slope for rate, slope in slopes.items() if slope < 0.0}
    return min(falling, key=lambda rate: falling[rate]) if falling else None


def proposal(points: Sequence[Point]) -> float | None:
    """The rate around which to run for real: the middle, by factor, between where the loss falls fastest and where the
    smoothed loss is lowest.

    Each alone is off to one side: an easy task has learned its format long before the rate is a useful one, and the
    lowest point is next to divergence. Without a decade to tell the fastest fall by, a third of the lowest point.
    None if the curve falls by less than 1%: it says nothing then.
    """
    if len(points) < FEWEST_POINTS:
        return None
    lowest, first = points[_lowest(points)], points[0].smoothed
    if first - lowest.smoothed < LEAST_FALL * abs(first):
        return None
    fastest = steepest(points)
    return lowest.rate / HALF_WINDOW if fastest is None else math.sqrt(fastest * lowest.rate)


def _lowest(points: Sequence[Point]) -> int:
    return min(range(len(points)), key=lambda index: points[index].smoothed)


def _slope(points: Sequence[Point]) -> float:
    """Of the loss over ln(rate)."""
    xs = [math.log(point.rate) for point in points]
    ys = [point.loss for point in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    below = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / below
