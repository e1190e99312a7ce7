"""Texts without the differences that do not count.

unicode     compatibility forms become plain ones (NFKC, Unicode Annex 15) and invisible characters go: a full-width
            letter, a ligature, a no-break space, a zero-width space. Superscripts, subscripts and fractions stay:
            NFKC would make 10\N{SUPERSCRIPT THREE} and 103 equal
case        as `str.casefold`
whitespace  runs become one space, none at the ends. Indentation of code goes, too
punctuation marks of sentences at the ends of words go. Those before and inside numbers stay, as do operators and
            brackets: `.5`, `3.5`, `5!`, `a*(b-c)` keep their meaning

Digits are never touched.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import cache

__all__ = ["DIFFERENCES", "normaliser", "numbers_of"]

DIFFERENCES = ("unicode", "case", "whitespace", "punctuation")

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_PLANES = 0x20000
"""Beyond are ideographs, none of them raised."""
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_MARKS = re.escape(".,;:?…\"'“”‘’«»。、，；：？！")
# `!` behind a digit is a factorial, not an exclamation.
_EDGES = re.compile(rf"(?<!\S)[{_MARKS}!]+(?!\d)|(?:(?<!\d)!|[{_MARKS}])+(?!\S)")


def normaliser(ignore: Collection[str]) -> Callable[[str], str]:
    """A function that takes the named differences out of a text."""
    steps: list[Callable[[str], str]] = []
    if "unicode" in ignore:
        steps.append(_compatible)
    if "case" in ignore:
        steps.append(str.casefold)
    if "punctuation" in ignore:
        steps.append(lambda text: _EDGES.sub("", text))
    if "whitespace" in ignore:
        steps.append(lambda text: " ".join(text.split()))

    def normalise(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalise


def _compatible(text: str) -> str:
    if text.isascii():
        return text
    pieces = _raised().split(text.translate(_INVISIBLE))
    # Odd pieces are the characters that are kept as they are.
    return "".join(piece if index % 2 else unicodedata.normalize("NFKC", piece) for index, piece in enumerate(pieces))


@cache
def _raised_characters() -> str:
    """Superscripts, subscripts and fractions."""
    kinds = ("<super>", "<sub>", "<fraction>")
    every = map(chr, range(0x80, _PLANES))
    return "".join(character for character in every if unicodedata.decomposition(character).startswith(kinds))


@cache
def _raised() -> re.Pattern[str]:
    return re.compile(f"([{re.escape(_raised_characters())}]+)")


@cache
def _number() -> re.Pattern[str]:
    """A sign counts where it is no dash between words or numbers."""
    raised = "".join(filter(str.isnumeric, _raised_characters()))
    return re.compile(rf"(?:(?<![\w.)\]])[-\u2212])?\d+(?:[.,]\d+)*|[{re.escape(raised)}]+")


def numbers_of(texts: Iterable[str]) -> Counter[str]:
    """Numbers written in digits, with how often each stands there; 1,000 is 1000."""
    found = _number().findall
    return Counter(
        number.replace(",", "") if _GROUPED.fullmatch(number) else number for text in texts for number in found(text)
    )
