"""Which evaluation texts each training text may hold: an inverted index over the evaluation side only.

The score is a quick estimate of `evidence.py`: shared weight of words over that of both texts (their geometric mean),
plus half of the same for numbers. A training text may be longer, as the evaluation text may stand within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.curate.contamination.targets import Lexicon

__all__ = ["FLOOR", "Candidates"]

FLOOR = 0.4
"""Least score of a prompt."""
_ANSWER_FLOOR = 0.5
"""Least score of an answer: worked answers share more numbers by chance."""
_BEST = 3
"""Of each side, for one training text."""
_COMMON_SHARE = 0.15
_COMMON_LEAST = 20
_ENOUGH = 6.0
"""Weight of numbers that makes their agreement full evidence: two or three numbers that few texts have."""


class Candidates:
    """Evaluation texts by the words in them."""

    def __init__(self, encoded: Sequence[Any], is_answer: Any, lexicon: Lexicon, floor: float) -> None:
        self._lexicon = lexicon
        self._floor = floor
        self._sides = [np.flatnonzero(is_answer == side) for side in (False, True)]
        self._count = len(encoded)
        owners = np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded])
        ids = np.concatenate([*encoded, np.zeros(0, np.int32)]).astype(np.int64)
        pairs = np.unique(ids * self._count + owners)
        ids, owners = pairs // self._count, pairs % self._count
        weights, numbers = lexicon.weights[ids], lexicon.is_number[ids]
        self._words = np.bincount(owners, weights * ~numbers, self._count)
        self._numbers = np.bincount(owners, weights * numbers, self._count)
        counts = np.bincount(ids, minlength=lexicon.known)
        rare = counts <= max(_COMMON_LEAST, _COMMON_SHARE * self._count)
        owners = owners[rare[ids]]
        self._lengths = np.where(rare, counts, 0)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._owners = owners

    def find(self, texts: Sequence[Any]) -> tuple[Any, Any]:
        """Pairs (training text, evaluation text) that are worth a comparison.

        Args:
            texts: Ids of each training text.
        """
        n, width = len(texts), len(self._lexicon.weights)
        owners = np.repeat(np.arange(n), [len(ids) for ids in texts])
        unique = np.unique(owners * width + np.concatenate([*texts, np.zeros(0, np.int32)]))
        owners, ids = unique // width, unique % width
        weights, numbers = self._lexicon.weights[ids], self._lexicon.is_number[ids]
        words_of_text = np.bincount(owners, weights * ~numbers, n)
        numbers_of_text = np.bincount(owners, weights * numbers, n)
        known = ids < self._lexicon.known
        owners, ids, weights, numbers = owners[known], ids[known], weights[known], numbers[known]
        words, shared = (
            self._shared(owners[kind], ids[kind], weights[kind], n) for kind in (~numbers, numbers)
        )  # fmt: skip
        score = _likeness(words, words_of_text, self._words)
        score += 0.5 * _likeness(shared, numbers_of_text, self._numbers) * np.minimum(1.0, shared / _ENOUGH)
        return self._best(score)

    def _shared(self, owners: Any, ids: Any, weights: Any, n: int) -> Any:
        """Weight of what each training text shares with each evaluation text, [texts, evaluation texts]."""
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self._starts[ids] - (ends - lengths), lengths)
        cells = np.repeat(owners * self._count, lengths) + self._owners[at]
        return np.bincount(cells, np.repeat(weights, lengths), n * self._count).reshape(n, self._count)

    def _best(self, score: Any) -> tuple[Any, Any]:
        rows, found = [], []
        for side, floor in zip(self._sides, (self._floor, _ANSWER_FLOOR), strict=True):
            if not len(side):
                continue
            own = score if len(side) == self._count else score[:, side]
            passing = np.flatnonzero(own.max(axis=1) >= floor)
            own = own[passing]
            best = np.argpartition(-own, min(_BEST, own.shape[1]) - 1, axis=1)[:, :_BEST]
            row, place = np.nonzero(np.take_along_axis(own, best, axis=1) >= floor)
            rows.append(passing[row])
            found.append(side[best[row, place]])
        return np.concatenate([*rows, np.zeros(0, np.int64)]), np.concatenate([*found, np.zeros(0, np.int64)])


def _likeness(shared: Any, of_texts: Any, of_targets: Any) -> Any:
    """Geometric mean of the shares of both; a longer training text counts as one of the same length."""
    target = np.sqrt(np.maximum(of_targets, 1e-9))[None]
    return shared / (target * np.minimum(np.sqrt(np.maximum(of_texts, 1e-9))[:, None], target))
