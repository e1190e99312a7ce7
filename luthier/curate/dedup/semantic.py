"""Semantic duplicates: rows whose parts have vectors with a cosine of at least the threshold.

All pairs are compared, block by block: no index that finds most of them. Comparing is not what takes the time: on a
CPU making the vectors costs more up to about a million rows (docs/dedup.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.curate.dedup.clusters import Clusters
from luthier.curate.dedup.embed import embed
from luthier.curate.dedup.views import Views
from luthier.runtime.console import Bar

__all__ = ["Semantic"]

_BLOCK = 2_048
_SLACK = 1e-4
"""Block products are rounded otherwise than the cosine of a pair; what is this near is computed again."""


class Semantic:
    """Similarity of rows by vectors. Indices are places in `rows`."""

    def __init__(self, views: Views, rows: Sequence[int], threshold: float, model: str, bar: Bar) -> None:
        self.threshold = threshold
        self._views, self._rows = views, rows
        self._contexts = np.frombuffer(b"".join(views.context(row) for row in rows), np.uint64)
        parts = [views.parts(row) for row in rows]
        self._counts = np.array([len(part) for part in parts])
        distinct = {text: place for place, text in enumerate(dict.fromkeys(text for part in parts for text in part))}
        bar.total = max(len(distinct), 1)
        vectors = embed(list(distinct), model, bar.advance) if distinct else np.zeros((0, 1), np.float32)
        self._vectors = np.zeros((len(rows), int(self._counts.max(initial=1)), vectors.shape[1]), np.float32)
        """[rows, parts, d]; parts that a row does not have are 0."""
        for place, part in enumerate(parts):
            self._vectors[place, : len(part)] = vectors[[distinct[text] for text in part]]
        self.compared = 0

    def similarity(self, first: int, second: int) -> float:
        """Smallest cosine of the parts of two rows; 0 for rows that cannot be duplicates."""
        if self._contexts[first] != self._contexts[second] or not self._counts[first]:
            return 0.0
        self.compared += 1
        one, other = self._vectors[[first, second], : self._counts[first]].astype(np.float64)
        least = float((one * other).sum(axis=1).min())
        # A vector with itself is 1 but for rounding.
        least = min(least, 1.0) if least < 1 - 1e-6 else 1.0
        if least < self.threshold or not self._views.may_be_one(self._rows[first], self._rows[second]):
            return 0.0
        return least

    def promising(self, row: int, others: Sequence[int]) -> list[int]:
        """Those of `others` with a mean cosine that lets the smallest reach the threshold."""
        flat = self._flat()
        near = flat[np.asarray(others)] @ flat[row] >= self._least(row)
        return [other for other, wanted in zip(others, near.tolist(), strict=True) if wanted]

    def clusters(self, bar: Bar) -> Clusters:
        """All rows, joined where they are near-duplicates. `bar` advances by rows."""
        found = Clusters(len(self._rows))
        flat, least = self._flat(), self.threshold * self._counts - _SLACK
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            for other in range(start, len(flat), _BLOCK):
                near = block @ flat[other : other + _BLOCK].T >= least[start : start + _BLOCK, None]
                pairs = np.argwhere(near) + np.array([start, other])
                pairs = pairs[pairs[:, 0] < pairs[:, 1]]
                pairs = pairs[self._contexts[pairs[:, 0]] == self._contexts[pairs[:, 1]]]
                for first, second in found.apart(pairs).tolist():
                    if found.find(first) != found.find(second) and self.similarity(first, second):
                        found.join(first, second)
            bar.advance(len(block))
        return found

    def _flat(self) -> Any:
        """Parts end to end: the product of two rows is the sum of the cosines of their parts."""
        return self._vectors.reshape(len(self._vectors), -1)

    def _least(self, row: int) -> float:
        return float(self.threshold * self._counts[row]) - _SLACK
