"""Answers that repeat themselves: shares of characters, as in Gopher (Rae et al. 2021, arXiv:2112.11446, table A1).

    duplicate lines, paragraphs    units equal to an earlier one / all units
    ... their characters           characters of those units / all characters of units
    top n-gram, n = 2..4           count x characters of the most frequent n words / characters of all words
    duplicate n-grams, n = 5..10   characters of words inside an n-gram that stood before / characters of all words

    loops                          times that the same n words, n = 1..8, stand directly behind each other

An n-gram that occurs once is no top n-gram. Characters of words do not count white space.
Code blocks and tables are left out: they repeat themselves. `loops` is not of Gopher; it finds short words
in long loops, which are few characters. Gopher's limits are for whole documents; `RepetitionFilter` says which
are the defaults here, and why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from luthier.curate.filters.base import Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, answers_of
from luthier.data.types import Conversation
from luthier.recipe.filter_schema import RepetitionFilter

__all__ = ["Repetition", "duplicate_ngrams", "duplicate_units", "longest_loop", "top_ngram"]

_LINES = re.compile(r"\n+")
_CODE = re.compile(r"```.*?(?:```|\Z)|^[ \t]*\|.*$", re.DOTALL | re.MULTILINE)
_LONGEST_LOOP = 8
_PARAGRAPHS = re.compile(r"\n\s*\n")


def duplicate_units(units: Sequence[str]) -> tuple[float, float, str]:
    """(share of units that repeat an earlier one, share of their characters, the first such unit)."""
    seen: set[str] = set()
    repeated = [unit for unit in units if unit in seen or seen.add(unit)]  # type: ignore[func-returns-value]
    total = sum(map(len, units))
    if not repeated:
        return 0.0, 0.0, ""
    return len(repeated) / len(units), sum(map(len, repeated)) / total, repeated[0]


def top_ngram(words: Sequence[str], n: int) -> tuple[float, str]:
    """(share of characters in the most frequent n words, those words); the longest of equally frequent ones."""
    if len(words) < n:
        return 0.0, ""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    most = max(counts.values())
    if most < 2:
        return 0.0, ""
    size, gram = max((sum(map(len, gram)), gram) for gram, count in counts.items() if count == most)
    return size * most / sum(map(len, words)), " ".join(gram)


def duplicate_ngrams(words: Sequence[str], n: int) -> tuple[float, str]:
    """(share of characters in words of n-grams that stood before, the first of them); no word counts twice."""
    seen: set[tuple[str, ...]] = set()
    ends = [0, *accumulate(map(len, words))]
    total, covered, first = 0, 0, ""
    for place in range(len(words) - n + 1):
        gram = tuple(words[place : place + n])
        if gram in seen:
            total += ends[place + n] - ends[max(place, covered)]
            covered = place + n
            first = first or " ".join(gram)
        seen.add(gram)
    return total / ends[-1] if words else 0.0, first


def longest_loop(words: Sequence[str]) -> tuple[int, str]:
    """(how often the same 1 to 8 words stand in a row at most, those words)."""
    most, place, size = 1, 0, 0
    for n in range(1, _LONGEST_LOOP + 1):
        run = 0
        for index in range(n, len(words)):
            run = run + 1 if words[index] == words[index - n] else 0
            if run // n + 1 > most:
                most, place, size = run // n + 1, index, n
    return most, " ".join(words[place - size + 1 : place + 1])


@dataclass(slots=True)
class Repetition(RowFilter):
    """Drop rows with such an answer."""

    settings: RepetitionFilter
    answers: Answers

    def judge(self, row: Conversation) -> Verdict:
        """The first measure that is above its limit."""
        for part in answers_of(row, self.answers):
            told = _CODE.sub("\n", part.text)
            words = told.split()
            found = self._loop(words)
            if found is None and len(words) >= self.settings.min_words:
                found = self._measure(told, words)
            if found is not None:
                what, share, limit, shown = found
                start = max(part.text.find(shown.split()[0]), 0) if shown else 0
                start = place if (place := part.text.find(shown)) >= 0 else start
                return Drop(
                    detail=f"{part.where}: {what} {share:.2f}, above {limit:g}: {shown[:60]!r}",
                    mark=Mark(part.where, part.text, start, min(start + len(shown), len(part.text))),
                    facts={"measure": what, "value": round(share, 4)},
                )
        return None

    def _loop(self, words: Sequence[str]) -> tuple[str, float, float, str] | None:
        times, shown = longest_loop(words) if len(words) > self.settings.loops else (0, "")
        return ("times in a row", times, self.settings.loops, shown) if times > self.settings.loops else None

    def _measure(self, text: str, words: Sequence[str]) -> tuple[str, float, float, str] | None:
        limits = self.settings
        for name, pattern in (("lines", _LINES), ("paragraphs", _PARAGRAPHS)):
            units = [unit.strip() for unit in pattern.split(text.strip())]
            share, characters, shown = duplicate_units(units)
            of_units, of_characters = (
                getattr(limits, key) for key in (f"duplicate_{name}", f"duplicate_{name[:-1]}_characters")
            )
            if share > of_units:
                return f"duplicate {name}", share, of_units, shown
            if characters > of_characters:
                return f"characters of duplicate {name}", characters, of_characters, shown
        for n, limit in enumerate(limits.top_ngrams, start=2):
            share, shown = top_ngram(words, n)
            if share > limit:
                return f"characters of the most frequent {n} words", share, limit, shown
        if _repeats(words, 5):
            for n, limit in enumerate(limits.duplicate_ngrams, start=5):
                share, shown = duplicate_ngrams(words, n)
                if share > limit:
                    return f"characters of repeated {n}-word sequences", share, limit, shown
        return None


def _repeats(words: Sequence[str], n: int) -> bool:
    """Whether any n words occur twice; else no longer sequence does."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) < len(grams)
