"""Fuzzy duplicates: caught by bands of MinHash signatures, proven by the Jaccard index of all shingles.

Two rows are near-duplicates if each of their parts has a Jaccard index of at least the threshold, their contexts
are equal, and (where numbers count) one has no number that the other lacks. Near-duplicates that hang together are
a cluster: the same whatever the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from luthier.curate.dedup.clusters import Clusters
from luthier.curate.dedup.minhash import BYTES_A_ROW as SIGNATURE_BYTES
from luthier.curate.dedup.minhash import PERMUTATIONS, bands_for, signatures
from luthier.curate.dedup.shingles import jaccard, shingles
from luthier.curate.dedup.views import Views
from luthier.runtime.console import Bar

__all__ = ["BYTES_A_ROW", "Fuzzy"]

BYTES_A_ROW = SIGNATURE_BYTES + 8 + 8
"""Signature, context, and the keys of one band at a time."""

_REMEMBERED = 4_096
_PAIRS_AT_ONCE = 32_768
_DEVIATIONS = 4.0


class Fuzzy:
    """Similarity of rows by shingles. Indices are places in `rows`."""

    def __init__(self, views: Views, rows: Sequence[int], threshold: float, bar: Bar) -> None:
        self.threshold = threshold
        self._views, self._rows = views, rows
        self._parts = lru_cache(_REMEMBERED)(self._shingled)
        contexts = b"".join(views.context(row) for row in rows)
        self._contexts = np.frombuffer(contexts, np.uint64)
        self._signatures = signatures((views.parts(row) for row in rows), len(rows), bar.advance)
        self.compared = 0
        """Pairs compared in full."""

    def similarity(self, first: int, second: int) -> float:
        """Smallest Jaccard index of the parts of two rows; 0 for rows that cannot be duplicates."""
        if self._contexts[first] != self._contexts[second]:
            return 0.0
        self.compared += 1
        least = min(map(jaccard, self._parts(first), self._parts(second)), default=0.0)
        if least < self.threshold or not self._views.may_be_one(self._rows[first], self._rows[second]):
            return 0.0
        return least

    def promising(self, row: int, others: Sequence[int]) -> list[int]:
        """Those of `others` whose similarity to a row may reach the threshold, by their signatures."""
        places = np.asarray(others)
        equal = (self._signatures[places] == self._signatures[row]).mean(axis=1)
        return list(places[equal >= self._least_equal()].tolist())

    def clusters(self, bar: Bar) -> Clusters:
        """All rows, joined where they are near-duplicates. `bar` advances by bands."""
        found = Clusters(len(self._rows))
        bands, width = bands_for(self.threshold)
        filled = np.flatnonzero((self._signatures != np.iinfo(np.uint32).max).any(axis=1))
        for band in range(bands):
            for pairs in _neighbours(self._keys(filled, band, width), filled, found):
                for first, second in self._worth_comparing(found.apart(pairs), band, width):
                    if found.find(first) != found.find(second) and self.similarity(first, second):
                        found.join(first, second)
            bar.advance(1)
        return found

    def _shingled(self, row: int) -> tuple[frozenset[str], ...]:
        return tuple(map(shingles, self._views.parts(self._rows[row])))

    def _least_equal(self) -> float:
        """Share of equal values below which a pair is not compared: four standard deviations under the threshold."""
        deviation = math.sqrt(self.threshold * (1 - self.threshold) / PERMUTATIONS)
        return self.threshold - _DEVIATIONS * deviation

    def _keys(self, rows: Any, band: int, width: int) -> Any:
        """One number for the values of a band and the context of each row."""
        keys = self._contexts[rows].copy()
        for column in range(band * width, (band + 1) * width):
            keys = (keys ^ self._signatures[rows, column]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return keys

    def _worth_comparing(self, pairs: Any, band: int, width: int) -> Iterator[tuple[int, int]]:
        """Pairs that no earlier band has caught and whose signatures are alike enough."""
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            equal = self._signatures[some[:, 0]] == self._signatures[some[:, 1]]
            earlier = equal[:, : band * width].reshape(len(some), band, width).all(axis=2).any(axis=1)
            wanted = ~earlier & (equal.mean(axis=1) >= self._least_equal())
            yield from map(tuple, some[wanted].tolist())


def _neighbours(keys: Any, rows: Any, found: Clusters) -> Iterator[Any]:
    """Pairs [m, 2] of rows with equal keys: first each with the next, then all that are still in different sets."""
    order = np.argsort(keys, kind="stable")
    ordered, sorted_keys = rows[order], keys[order]
    same = sorted_keys[1:] == sorted_keys[:-1]
    yield np.stack([ordered[:-1][same], ordered[1:][same]], axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        members = ordered[start : stop + 1]
        if len(members) > 2 and found.several(members.tolist()):
            for place in range(len(members) - 2):
                others = members[place + 2 :]
                yield np.stack([np.full(len(others), members[place]), others], axis=1)
