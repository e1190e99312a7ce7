"""How much of one evaluation text a training text holds, by five kinds of evidence, each from 0 to 1.

ngram       weight of the n-grams of the evaluation text that the training text has, over that of all
characters  the same for pieces of 5 characters: finds typos
words       shared words, by weight: geometric mean of their share of both texts
numbers     shared numbers over all numbers of both (Jaccard index by weight, with how often each stands there)
answer      the same for the numbers of the answers: the training row's beside the text, the evaluation row's own

An n-gram weighs the sum of its words' weights. Where the training text is much longer, only its part that is most like
the evaluation text is compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.curate.contamination.targets import Lexicon, Target

__all__ = ["Evidence", "Measure", "Text"]

NGRAM = 5
"""Words."""
SHINGLE = 5
"""Characters."""
_ENOUGH = 6.0
"""Weight of shared numbers that is full evidence: two or three numbers that few texts have."""
_ONE_NUMBER, _ONE_OF_ANSWER = 0.5, 0.6
"""What agreement is worth if it is that of a single number: however rare, it may be chance (an order number)."""
_FINAL = 0.5
"""Answer evidence of an equal last number alone."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one pair."""

    ngram: float
    characters: float
    words: float
    numbers: float
    answer: float
    conflict: bool
    """Each of both texts has a number that the other lacks."""
    same_result: bool
    """The answers end with one number; where the evaluation's has none, they have the same words."""
    start: int
    end: int
    """The words of the training text that were compared."""
    has_numbers: bool = True
    """Of the evaluation text."""
    embedding: float | None = None
    """Cosine of their embeddings, if they were made."""

    def moved(self, by: int) -> Evidence:
        """The same, of a text that begins so many words later."""
        return replace(self, start=self.start + by, end=self.end + by) if by else self

    @property
    def reworded(self) -> float:
        """Words, numbers and answer together, from 0 to 1."""
        return 0.5 * self.words + 0.25 * self.numbers + 0.25 * self.answer


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A part of a training row, and what is said beside it."""

    words: Sequence[str]
    ids: Any
    answers: Sequence[Any]
    """Ids of each other part."""


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    ids: list[int]
    counts: dict[int, int]
    n: int
    ngrams: dict[tuple[int, ...], float]
    shingles: frozenset[str]
    has_numbers: bool
    ngram_total: float
    shingle_total: float


class Measure:
    """Measures pairs; keeps what it needs of the evaluation texts."""

    def __init__(
        self,
        targets: Sequence[Target],
        encoded: Sequence[Any],
        answers: dict[int, Any],
        lexicon: Lexicon,
        ngram: int = NGRAM,
    ) -> None:
        self._weights = lexicon.weights.tolist()
        self._is_number = lexicon.is_number.tolist()
        self._n = ngram
        shingles = [_shingles(target.words) for target in targets]
        counts = Counter(piece for pieces in shingles for piece in pieces)
        self._shingle_weights = {piece: math.log1p(len(targets) / count) for piece, count in counts.items()}
        self._known = [self._make(ids.tolist(), own) for ids, own in zip(encoded, shingles, strict=True)]
        self._rows = [target.row if target.side == "prompt" else None for target in targets]
        self._answers = {row: ids.tolist() for row, ids in answers.items()}

    def _make(self, ids: list[int], shingles: frozenset[str]) -> _Known:
        n = min(self._n, len(ids))
        ngrams = {piece: sum(self._weights[one] for one in piece) for piece in _ngrams(ids, n)}
        return _Known(
            ids=ids, counts=Counter(ids), n=n, ngrams=ngrams, shingles=shingles,
            has_numbers=any(self._is_number[one] for one in ids), ngram_total=sum(ngrams.values()),
            shingle_total=sum(self._shingle_weights[piece] for piece in shingles),
        )  # fmt: skip

    def __call__(self, text: Text, target: int) -> Evidence:
        """Compare a training text with an evaluation text (by its index)."""
        known = self._known[target]
        start, end = self._locate(text.ids, known)
        ids = text.ids[start:end].tolist()
        words, numbers, conflict = self._compare(Counter(ids), known.counts)
        own = set(_ngrams(ids, known.n))
        shared = sum(known.ngrams[piece] for piece in own if piece in known.ngrams)
        ngram = shared / known.ngram_total if known.ngram_total else 0.0
        row = self._rows[target]
        answer, same_result = 0.0, False
        if row is not None and row in self._answers:
            beside = [*text.answers, text.ids[end:]] if end < len(text.ids) else text.answers
            found = [self._same_answer(ids.tolist(), self._answers[row]) for ids in beside]
            answer = max((like for like, _ in found), default=0.0)
            same_result = any(same for _, same in found)
        return Evidence(ngram=ngram, characters=self._characters(text.words[start:end], known), words=words,
                        numbers=numbers, answer=answer, conflict=conflict, same_result=same_result, start=start,
                        end=end, has_numbers=known.has_numbers)  # fmt: skip

    def _locate(self, ids: Any, known: _Known) -> tuple[int, int]:
        """Where in a long text the evaluation text may stand."""
        length = len(known.ids) + len(known.ids) // 4 + 4
        if len(ids) <= length + length // 4:
            return 0, len(ids)
        counts, weights = known.counts, self._weights
        shared = np.array([weights[one] if one in counts else 0.0 for one in ids.tolist()])
        sums = np.concatenate([[0.0], np.cumsum(shared)])
        start = int(np.argmax(sums[length:] - sums[:-length]))
        inside = np.flatnonzero(shared[start : start + length])
        return (start + int(inside[0]), start + int(inside[-1]) + 1) if len(inside) else (start, start + length)

    def _compare(self, own: Counter[int], other: dict[int, int]) -> tuple[float, float, bool]:
        """Words and numbers shared, and whether each side has a number that the other lacks."""
        weights, is_number = self._weights, self._is_number
        words = [0.0, 0.0, 0.0]
        numbers = [0.0, 0.0, 0.0]
        more = less = False
        distinct = 0
        for one, count in own.items():
            sums = numbers if is_number[one] else words
            sums[0] += weights[one] * count
            there = other.get(one, 0)
            sums[2] += weights[one] * min(count, there)
            more = more or (is_number[one] and not there)
            distinct += is_number[one] and there > 0
        for one, count in other.items():
            sums = numbers if is_number[one] else words
            sums[1] += weights[one] * count
            less = less or (is_number[one] and one not in own)
        both = words[0] * words[1]
        union = numbers[0] + numbers[1] - numbers[2]
        like = numbers[2] / union * _informed(numbers[2], distinct, _ONE_NUMBER) if union else 0.0
        return (words[2] / both**0.5 if both else 0.0), like, more and less

    def _same_answer(self, own: list[int], other: list[int]) -> tuple[float, bool]:
        """Jaccard index by weight of the numbers of two answers (of their words where the evaluation's has none), and
        whether they come to the same."""
        weights, is_number = self._weights, self._is_number
        wanted = [one for one in other if is_number[one]]
        has_numbers = bool(wanted)
        wanted = wanted or other
        given = [one for one in own if is_number[one] == has_numbers]
        if not given or not wanted:
            return 0.0, False
        ours, theirs = Counter(given), Counter(wanted)
        both = ours & theirs
        shared = sum(weights[one] * count for one, count in both.items())
        union = sum(weights[one] * count for one, count in (ours | theirs).items())
        same_result = given[-1] == wanted[-1] if has_numbers else ours == theirs
        like = max(shared / union, _FINAL if same_result else 0.0)
        return like * _informed(shared, len(both), _ONE_OF_ANSWER), same_result

    def _characters(self, words: Sequence[str], known: _Known) -> float:
        shared = sum(self._shingle_weights[piece] for piece in known.shingles & _shingles(words))
        return shared / known.shingle_total if known.shingle_total else 0.0


def _informed(weight: float, distinct: int, alone: float) -> float:
    """How far shared numbers are more than chance: by their weight, and whether there are at least two."""
    return min(1.0, weight / _ENOUGH) * (1.0 if distinct > 1 else alone)


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(ids[place:] for place in range(n)), strict=False))


def _shingles(words: Sequence[str]) -> frozenset[str]:
    text = " ".join(words).casefold()
    return frozenset(text[place : place + SHINGLE] for place in range(max(1, len(text) - SHINGLE + 1)))
