"""What is looked for: the prompts and answers of evaluation rows, as names of words with weights.

A word weighs log(1 + n / df): n texts, df of them with the word, over the evaluation texts and a sample of the training
texts. So a phrase that many rows share weighs little on whichever side it is common, and nothing weighs 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from luthier.curate.contamination.words import NUMBER, located, name_of, words_of
from luthier.curate.text import text_of
from luthier.data.types import Conversation

__all__ = ["Lexicon", "Side", "Target", "targets_of", "window_of"]

Side = Literal["prompt", "answer"]

LEAST_ANSWER = 8
"""Words and numbers; a shorter answer stands in too many texts to be looked for by itself."""
_LEAST_PROMPT = 4
_SHORTEST_WINDOW = 64
_REMEMBERED = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One text of an evaluation row, or a piece of a long one."""

    row: int
    """Index of the evaluation row."""
    side: Side
    text: str
    """All of the prompt or answer."""
    words: Sequence[str]
    """Of this piece, as written."""
    places: Sequence[tuple[int, int]]
    """Where each word begins and ends in `text`."""


class Lexicon:
    """Names of words as numbers, and their weights. Names of evaluation texts come first."""

    def __init__(self, targets: Sequence[Target], sample: Iterable[str]) -> None:
        own = Counter(name for target in targets for name in {name_of(word) for word in target.words})
        self.known = len(own)
        """Ids below this are words of evaluation texts."""
        counts, texts = Counter(own), len(targets)
        for text in sample:
            counts.update({name_of(word) for word in words_of(text)})
            texts += 1
        names = [*own, *(name for name in counts if name not in own)]
        self._ids = {name: place for place, name in enumerate(names)}
        self.unknown = len(names)
        """Id of every word that was not seen; the next one is that of every such number. They are never equal."""
        df = np.array([counts[name] for name in names] + [1, 1], np.float64)
        self.weights: Any = np.log1p(texts / df)
        self.is_number: Any = np.array([name.startswith(NUMBER) for name in names] + [False, True])
        self._remembered = _Remembered(self)

    def encode(self, words: Sequence[str]) -> Any:
        """Ids [n], int32."""
        if len(self._remembered) > _REMEMBERED:
            self._remembered.clear()
        return np.fromiter(map(self._remembered.__getitem__, words), np.int32, len(words))

    def id_of(self, word: str) -> int:
        """Id of a word as written."""
        name = name_of(word)
        return self._ids.get(name, self.unknown + name.startswith(NUMBER))


class _Remembered(dict[str, int]):
    """Word as written -> id."""

    def __init__(self, lexicon: Lexicon) -> None:
        super().__init__()
        self._lexicon = lexicon

    def __missing__(self, word: str) -> int:
        self[word] = found = self._lexicon.id_of(word)
        return found


def targets_of(rows: Sequence[Conversation], sides: Sequence[Side]) -> tuple[list[Target], dict[Side, int]]:
    """The texts that are looked for, long ones in pieces; and of each side how many are too short.

    A prompt is all that stands before the last answer but for system messages; plain text counts as a prompt.
    """
    found: list[tuple[int, Side, str, list[str], list[tuple[int, int]]]] = []
    short: dict[Side, int] = dict.fromkeys(sides, 0)
    for index, row in enumerate(rows):
        for side in sides:
            text = text_on(row, side)
            words, places = located(text)
            if len(words) >= (_LEAST_PROMPT if side == "prompt" else LEAST_ANSWER):
                found.append((index, side, text, words, places))
            elif side == "prompt" or row.kind != "text":
                short[side] += 1
    longest = window_of([len(words) for *_, words, _ in found])
    targets = [
        Target(index, side, text, words[start:end], places[start:end])
        for index, side, text, words, places in found
        for start, end in pieces(len(words), longest, longest)
    ]
    return targets, short


def text_on(row: Conversation, side: Side) -> str:
    """The prompt or the answer of an evaluation row; of a pair the chosen answer."""
    if row.kind == "text":
        return row.text if side == "prompt" else ""
    parts = text_of(row, side).parts
    if side == "answer":
        parts = parts[:1]
    return "\n".join(text for part in parts for text in part)


def window_of(lengths: Sequence[int]) -> int:
    """Longest text, in words, that is compared as one: twice what 95% of the evaluation texts need."""
    return max(_SHORTEST_WINDOW, 2 * int(np.percentile(lengths, 95))) if lengths else _SHORTEST_WINDOW


def pieces(length: int, longest: int, step: int) -> list[tuple[int, int]]:
    """Beginnings and ends of pieces of at most `longest` that cover a text; the last one ends with it."""
    if length <= longest:
        return [(0, length)]
    starts = [*range(0, length - longest, step), length - longest]
    return [(start, start + longest) for start in starts]
