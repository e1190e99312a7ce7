"""Cut a text into passages: by its structure, within a number of tokens, with overlap.

    text --cut--> units (headings, sentences, lines of code) --fill--> passages

Units follow each other without a gap, so passages cover the text. A heading begins a new passage; a short section goes
on in the same passage when both fit, so that small sections do not become tiny passages. A passage in the middle of a
section begins with the last units of the one before, up to `overlap` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Chunk", "Count", "chunk", "estimate_tokens", "units_of"]

Count = Callable[[str], int]
"""Tokens of a text."""

_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t#]*\r?$")
_FENCE = re.compile(r"[ \t]*(```|~~~)")
# A sentence ends at . ! ? (and brackets or quotes behind it) before white space, or at a full-width mark.
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]’”]*\s+|(?<=[。！？])")
_PIECE = re.compile(r"[^\W_]+|[^\w\s]|_", re.UNICODE)
_CHARACTERS_A_TOKEN = 4


def estimate_tokens(text: str) -> int:
    """An estimate without a tokenizer: a word is one token for each 4 characters begun, any other mark is one; a
    character outside ASCII is one."""
    total = 0
    for piece in _PIECE.findall(text):
        total += -(-len(piece) // _CHARACTERS_A_TOKEN) if piece.isascii() else len(piece)
    return total


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of the text that is not cut."""

    start: int
    end: int
    tokens: int
    level: int = 0
    """Of a heading: 1 to 6; 0: no heading."""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage: `text[start:end]`."""

    start: int
    """Offset in characters; the overlap begins here."""
    new: int
    """Offset where what the passage before does not have begins."""
    end: int
    titles: tuple[str, ...]
    """Headings above its first new unit, outermost first."""


def chunk(text: str, *, tokens: int, overlap: int, headings: bool, count: Count = estimate_tokens) -> list[Chunk]:
    """Passages of a text, in order; together they cover it. White space alone gives none.

    Args:
        text: The document.
        tokens: Most tokens of a passage, as a sum over its units.
        overlap: Most tokens that are repeated from the passage before; less than `tokens`.
        headings: Whether lines that begin with `#` are headings.
        count: Tokens of a text.
    """
    assert 0 <= overlap < tokens
    units = units_of(text, tokens - overlap, headings=headings, count=count)
    passages: list[Chunk] = []
    path: list[Unit] = []
    at = 0
    while at < len(units):
        first = _overlap(units, at, overlap) if passages and not units[at].level else at
        end = _filled(units, at, tokens - sum(unit.tokens for unit in units[first:at]))
        path = _path(path, units[at])
        titles = tuple(unit.title for unit in path)
        for unit in units[at + 1 : end]:
            path = _path(path, unit)
        passages.append(Chunk(units[first].start, units[at].start, units[end - 1].end, titles))
        at = end
    return passages


def _path(path: list[Unit], unit: Unit) -> list[Unit]:
    """Headings above what follows `unit`."""
    return [above for above in path if above.level < unit.level] + [unit] if unit.level else path


def _filled(units: list[Unit], at: int, room: int) -> int:
    """Where the passage that begins at `at` ends: whole sections as long as they fit, else as much as fits."""
    total, end, section_end = 0, at, at
    while end < len(units) and total + units[end].tokens <= room:
        if end > at and units[end].level and not units[end - 1].level:
            section_end = end
        total += units[end].tokens
        end += 1
    end = max(end, at + 1)
    if end < len(units) and not units[end].level and section_end > at:
        return section_end  # the next section does not fit whole: it begins a passage of its own
    while end < len(units) and end - 1 > at and units[end - 1].level:
        end -= 1  # a heading does not stand at the end
    return end


def _overlap(units: list[Unit], at: int, overlap: int) -> int:
    """First unit of the overlap before `at`: up to so many tokens, no heading crossed."""
    first, total = at, 0
    while first > 0 and not units[first - 1].level and total + units[first - 1].tokens <= overlap:
        first -= 1
        total += units[first].tokens
    return first


# -- units


def units_of(text: str, most: int, *, headings: bool, count: Count) -> list[Unit]:
    """Cut a text into units of at most `most` tokens (one character is always a unit); white space belongs to the unit
    before it, at the start to the first."""
    units: list[Unit] = []
    for start, end, level, title in _blocks(text, headings=headings):
        if not text[start:end].strip():
            if units:
                last = units[-1]
                units[-1] = Unit(last.start, end, last.tokens, last.level, last.title)
            continue
        start = units[-1].end if units else 0
        for left, right in _cut(text, start, end, most, count):
            units.append(Unit(left, right, count(text[left:right]), level, title))
            level = 0
    return units


def _blocks(text: str, *, headings: bool) -> Iterator[tuple[int, int, int, str]]:
    """(start, end, level, title): headings, fenced code, paragraphs with the blank lines behind them."""
    start, at, fenced = 0, 0, ""
    for line in text.splitlines(keepends=True):
        fence = _FENCE.match(line) if headings else None
        heading = _HEADING.match(line) if headings and not fenced else None
        if heading:
            if at > start:
                yield start, at, 0, ""
            start = at + len(line)
            yield at, start, len(heading[1]), heading[2].strip()
        at += len(line)
        if fence:
            fenced = "" if fenced == fence[1] else fenced or fence[1]
        if not fenced and not line.strip() and at > start:
            yield start, at, 0, ""
            start = at
    if at > start:
        yield start, at, 0, ""


def _cut(text: str, start: int, end: int, most: int, count: Count) -> Iterator[tuple[int, int]]:
    """A block as units: sentences; a longer one by lines, by words, at last by characters."""
    code = _FENCE.match(text, start) is not None
    if code and count(text[start:end]) <= most:
        yield start, end
        return
    for left, right in _between(text, start, end, re.compile(r"\n") if code else _SENTENCE):
        yield from _fitting(text, left, right, most, count, [re.compile(r"\n"), re.compile(r"\s+")])


def _fitting(
    text: str, start: int, end: int, most: int, count: Count, finer: list[re.Pattern[str]]
) -> Iterator[tuple[int, int]]:
    if count(text[start:end]) <= most or end - start == 1:
        yield start, end
    elif finer:
        # Pieces are joined again as far as they fit, so that a long sentence is not cut into words.
        left = start
        reach = start
        for _, right in _between(text, start, end, finer[0]):
            if reach > left and count(text[left:right]) > most:
                yield from _fitting(text, left, reach, most, count, finer[1:])
                left = reach
            reach = right
        yield from _fitting(text, left, end, most, count, finer[1:])
    else:
        middle = (start + end) // 2
        yield from _fitting(text, start, middle, most, count, finer)
        yield from _fitting(text, middle, end, most, count, finer)


def _between(text: str, start: int, end: int, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Stretches that end behind each match."""
    left = start
    for found in pattern.finditer(text, start, end):
        if left < found.end() < end:
            yield left, found.end()
            left = found.end()
    yield left, end
