"""All training rows against the evaluation texts, batch by batch: memory grows with the evaluation side only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.curate.contamination.candidates import FLOOR, Candidates
from luthier.curate.contamination.evidence import NGRAM, Evidence, Measure, Text
from luthier.curate.contamination.targets import Lexicon, Side, pieces, targets_of, text_on, window_of
from luthier.curate.contamination.words import words_of
from luthier.curate.text import text_of
from luthier.data.types import Conversation

__all__ = ["Pair", "Scan"]

_BATCH_CELLS = 500_000
_SAMPLE = 20_000
"""Training rows, evenly spread, that tell how common a word is."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A training text that may hold an evaluation text."""

    row: int
    part: int
    """Of `text_of(row).parts`."""
    target: int
    evidence: Evidence
    """`start` and `end` count words of the whole part."""


class Scan:
    """The evaluation side, ready to compare training rows with."""

    def __init__(
        self,
        against: Sequence[Conversation],
        train: Sequence[Conversation],
        sides: Sequence[Side],
        *,
        floor: float = FLOOR,
        ngram: int = NGRAM,
    ) -> None:
        self.targets, self.short = targets_of(against, sides)
        step = max(1, -(-len(train) // _SAMPLE))
        sample = (text for row in train[::step] for text in parts_of(row))
        # Answers are evidence for prompts, whether or not they are looked for themselves.
        answers = {target.row: text_on(against[target.row], "answer") for target in self.targets}
        self.lexicon = Lexicon(self.targets, sample)
        encoded = [self.lexicon.encode(target.words) for target in self.targets]
        is_answer = np.array([target.side == "answer" for target in self.targets], bool)
        self._window = window_of([len(target.words) for target in self.targets])
        self._candidates = Candidates(encoded, is_answer, self.lexicon, floor)
        wanted = {row: self.lexicon.encode(words_of(text)) for row, text in answers.items()}
        self._measure = Measure(self.targets, encoded, wanted, self.lexicon, ngram)
        self._prompts: dict[int, list[int]] = {}
        for place, target in enumerate(self.targets):
            if target.side == "prompt":
                self._prompts.setdefault(target.row, []).append(place)
        self._batch = max(16, _BATCH_CELLS // max(len(self.targets), 1))
        self.compared = 0

    def pairs(self, rows: Sequence[Conversation], advance: Callable[[int], None] = lambda n: None) -> Iterator[Pair]:
        """Every pair worth a look, in the order of the rows."""
        if not self.targets:
            return
        for start in range(0, len(rows), self._batch):
            batch = rows[start : start + self._batch]
            yield from self._batch_pairs(batch, start)
            advance(len(batch))

    def _batch_pairs(self, rows: Sequence[Conversation], before: int) -> Iterator[Pair]:
        windows: list[tuple[int, int, int, Text]] = []
        ids: list[Any] = []
        for place, row in enumerate(rows):
            split = [words_of(part) for part in parts_of(row)]
            encoded = [self.lexicon.encode(words) for words in split]
            for part, (words, own) in enumerate(zip(split, encoded, strict=True)):
                others = [*encoded[:part], *encoded[part + 1 :]]
                for start, end in pieces(len(words), self._window, self._window // 2):
                    windows.append((before + place, part, start, Text(words[start:end], own[start:end], others)))
                    ids.append(own[start:end])
        for place, target in self._wanted(ids, [window[0] for window in windows]):
            number, part, offset, text = windows[place]
            self.compared += 1
            found = self._measure(text, target).moved(offset)
            if part and self.targets[target].side == "prompt":
                # What stands beside an answer is no answer to it: the prompt must be found by its own text.
                found = replace(found, answer=0.0, same_result=False)
            yield Pair(number, part, target, found)

    def _wanted(self, windows: Sequence[Any], rows: Sequence[int]) -> list[tuple[int, int]]:
        """Windows and evaluation texts to compare. Where a row may hold an answer, its prompt is compared, too: a
        reworded prompt may share few words."""
        found: set[tuple[int, int]] = set()
        of_row: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            of_row.setdefault(row, []).append(place)
        for start in range(0, len(windows), self._batch):
            texts, targets = self._candidates.find(windows[start : start + self._batch])
            for text, target in zip((texts + start).tolist(), targets.tolist(), strict=True):
                found.add((text, target))
                if self.targets[target].side == "answer":
                    others = [place for place in of_row[rows[text]] if place != text]
                    prompts = self._prompts.get(self.targets[target].row, ())
                    found.update((place, prompt) for place in others for prompt in prompts)
        return sorted(found)


def parts_of(row: Conversation) -> list[str]:
    """The texts of a training row that are looked through: what is asked, what is said, each answer of a pair."""
    return ["\n".join(part) for part in text_of(row).parts]
