"""Which places of two texts match: for people, who want to see why.

A word matches if it stands in a run of three words that the other text has, too, or if the other text has it and it is
a number or rarer than most. Places that follow each other are one span.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.curate.contamination.targets import Lexicon
from luthier.curate.contamination.words import located

__all__ = ["Span", "matching"]

Span = tuple[int, int]
"""Beginning and end, in characters."""
_RUN = 3


def matching(
    own: str, other: str, lexicon: Lexicon, within: tuple[int, int], there: tuple[int, int]
) -> tuple[list[Span], list[Span]]:
    """Matching spans of a training text and of an evaluation text.

    Args:
        within: the words of `own` that are compared.
        there: the same of `other`.
    """
    words, places = _part(own, within)
    theirs, their_places = _part(other, there)
    ids, their_ids = lexicon.encode(words).tolist(), lexicon.encode(theirs).tolist()
    heavy = sorted(lexicon.weights[one] for one in their_ids)[len(their_ids) // 2] if their_ids else 0.0
    telling = {one for one in their_ids if lexicon.weights[one] >= heavy or lexicon.is_number[one]}
    return _spans(ids, their_ids, telling, places), _spans(their_ids, ids, telling, their_places)


def _part(text: str, within: tuple[int, int]) -> tuple[list[str], list[Span]]:
    words, places = located(text)
    return words[within[0] : within[1]], places[within[0] : within[1]]


def _spans(ids: Sequence[int], others: Sequence[int], telling: set[int], places: Sequence[Span]) -> list[Span]:
    there = set(others)
    runs = {tuple(others[start : start + _RUN]) for start in range(len(others) - _RUN + 1)}
    marked = [one in there and one in telling for one in ids]
    for start in range(len(ids) - _RUN + 1):
        if tuple(ids[start : start + _RUN]) in runs:
            marked[start : start + _RUN] = [True] * _RUN
    spans: list[Span] = []
    for place, (yes, (start, end)) in enumerate(zip(marked, places, strict=True)):
        if not yes:
            continue
        if place and marked[place - 1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans
