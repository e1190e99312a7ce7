"""Which rows of a cluster stay: the best, and every other that is no duplicate of one that stays.

In a chain of near-duplicates A - B - C the ends may have little in common. Dropping all but A would drop C for
being similar to a row that is not kept either. So each dropped row has a kept one that it is similar to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["Similar", "choose"]


class Similar(Protocol):
    """Similarity between rows, 0 below a threshold."""

    def similarity(self, first: int, second: int) -> float:
        """Of two rows; 0 if they are no duplicates."""

    def promising(self, row: int, others: Sequence[int]) -> list[int]:
        """Those of `others` that are worth asking for."""


def choose(
    members: Sequence[int], rank: Callable[[int], tuple[float, ...]], similar: Similar
) -> dict[int, tuple[int, float]]:
    """Go through a cluster from its best row (lowest rank) on.

    Returns:
        For each row to drop: the kept row it is most similar to, and how similar (above 0).
    """
    kept: list[int] = []
    dropped: dict[int, tuple[int, float]] = {}
    for row in sorted(members, key=rank):
        best, closest = 0.0, -1
        for other in similar.promising(row, kept) if kept else ():
            found = similar.similarity(row, other)
            if found > best:
                best, closest = found, other
        if best > 0.0:
            dropped[row] = closest, best
        else:
            kept.append(row)
    return dropped
