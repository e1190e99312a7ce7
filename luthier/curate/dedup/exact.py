"""Exact duplicates: rows whose normalised texts are equal, by hash (blake2b, 128 bits)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from luthier.curate.dedup.views import Views

__all__ = ["BYTES_A_ROW", "equal_rows"]

BYTES_A_ROW = 16


def equal_rows(views: Views, rows: Sequence[int], advance: Callable[[], None] = lambda: None) -> list[list[int]]:
    """Sets of two or more rows that say the same, each in the order of `rows`."""
    digests = bytearray()
    for row in rows:
        digests += views.digest(row)
        advance()
    halves = np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal rows stay in order
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    sizes = np.diff(np.append(starts, len(order)))
    wanted = sizes > 1
    return [
        [rows[place] for place in order[start : start + size]]
        for start, size in zip(starts[wanted].tolist(), sizes[wanted].tolist(), strict=True)
    ]
