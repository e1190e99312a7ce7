"""Lengths of many rows in a few numbers. Units: tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Any

__all__ = ["length_summary"]

_BINS = 20


def length_summary(lengths: Sequence[int]) -> dict[str, Any]:
    """Percentiles (nearest rank) and a histogram of [low, high) bins of whole tokens."""
    if not lengths:
        return {"min": 0, "p50": 0, "p95": 0, "max": 0, "histogram": []}
    ordered = sorted(lengths)

    def rank(share: float) -> int:
        return ordered[max(0, ceil(share * len(ordered)) - 1)]

    width = -(-(ordered[-1] - ordered[0] + 1) // _BINS)
    counts = Counter((length - ordered[0]) // width for length in lengths)
    bins = range((ordered[-1] - ordered[0]) // width + 1)
    histogram = [[ordered[0] + k * width, ordered[0] + (k + 1) * width, counts[k]] for k in bins]
    return {"min": ordered[0], "p50": rank(0.5), "p95": rank(0.95), "max": ordered[-1], "histogram": histogram}
