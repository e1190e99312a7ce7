"""Shingles: all pieces of five characters of a text.

Characters, not words: they serve languages without spaces, and one changed word in a short prompt leaves most
shingles as they were (docs/dedup.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["SHINGLE", "jaccard", "shingle_hashes", "shingles"]

SHINGLE = 5
"""Characters."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def shingles(text: str) -> frozenset[str]:
    """The shingles of a text; a shorter text is its own and only one, an empty text has none."""
    if len(text) <= SHINGLE:
        return frozenset([text] if text else [])
    return frozenset(text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared shingles over all shingles of both; 1 for two empty texts."""
    if not first and not second:
        return 1.0
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def shingle_hashes(rows: Sequence[Sequence[str]]) -> tuple[Any, Any]:
    """64-bit hashes of the shingles of many rows, and where each row begins.

    The same shingle in another part of a row has another hash, so the Jaccard index of two rows is at least the
    smallest of those of their parts (a ratio of sums is at least the smallest of the ratios).

    Args:
        rows: The parts of each row.

    Returns:
        Hashes of all rows end to end [s], uint64, and offsets [n + 1]; an empty row has none.
    """
    texts = [part.ljust(SHINGLE, "\0") if part else "" for row in rows for part in row]
    numbers = np.array([index for row in rows for index in range(len(row))], np.uint64)
    lengths = np.array([len(text) for text in texts], np.int64)
    counts = np.maximum(lengths - SHINGLE + 1, 0)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    width = max(len(codes) - SHINGLE + 1, 0)
    hashes = np.zeros(width, np.uint64)
    for place in range(SHINGLE):
        hashes = (hashes ^ codes[place : place + width]) * _MIX
        hashes ^= hashes >> _SHIFT
    starts = np.cumsum(lengths) - lengths
    before = np.cumsum(counts) - counts
    # Windows that lie within one text.
    inside = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    found = hashes[inside] ^ np.repeat(numbers * _MIX, counts)
    parts_before = np.cumsum([0, *(len(row) for row in rows)])
    return found, np.concatenate([[0], np.cumsum(counts)])[parts_before]
