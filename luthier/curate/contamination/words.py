"""Texts as words and numbers that keep their place.

A word is named by its stem (plural, -ed, -ing and the possessive go), a number by its value: `1,000`, `1000.0` and
`thousand` are one, and so are `2`, `two`, `twice`, `double` and `half` (a half is a 2 as 3/4 is a 3 and a 4). Number
words and stems are English; other languages are compared by the words as they stand. Scripts without spaces between
words (Han, Kana, Hangul, Thai, Lao, Khmer) give one word a character.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["NUMBER", "located", "name_of", "words_of"]

NUMBER = "#"
"""First character of the name of a number."""

_ALONE = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_HIDDEN = "\u00ad\u200b\u2060\ufeff"
_LETTER = rf"[^\W\d_{_ALONE}]"
_TOKEN = re.compile(
    rf"\d+(?:[.,]\d+)*|(?<![\w.])\.\d+|[{_ALONE}]|{_LETTER}(?:{_LETTER}|['’](?={_LETTER})|[{_HIDDEN}])*"
)
_INVISIBLE = dict.fromkeys(map(ord, _HIDDEN))
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_VALUES = {word: value for value, word in enumerate(_UNITS)} | {
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100,
    "thousand": 1_000, "million": 1_000_000, "dozen": 12, "dozens": 12, "half": 2, "halves": 2, "twice": 2,
    "double": 2, "doubled": 2, "doubles": 2, "thrice": 3, "triple": 3, "tripled": 3, "triples": 3, "third": 3,
    "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4, "fifth": 5, "fifths": 5, "sixth": 6,
    "sixths": 6, "tenth": 10, "tenths": 10,
}  # fmt: skip
_SUFFIXES = ("ing", "ed", "es", "s")
_LEAST_STEM = 3


def words_of(text: str) -> list[str]:
    """Words and numbers of a text, in order, as they are written."""
    return _TOKEN.findall(text)


def located(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """`words_of`, and where each begins and ends, in characters of the text."""
    found = list(_TOKEN.finditer(text))
    return [match[0] for match in found], [match.span() for match in found]


def name_of(word: str) -> str:
    """What a written word is compared by."""
    if not word.isascii():
        word = unicodedata.normalize("NFKC", word.translate(_INVISIBLE)).replace("’", "'")
    plain = word.casefold()
    if plain[:1].isdigit() or plain.startswith("."):
        return NUMBER + _value(plain)
    if plain in _VALUES:
        return f"{NUMBER}{_VALUES[plain]}"
    return _stem(plain)


def _value(digits: str) -> str:
    whole, point, rest = digits.replace(",", "").partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{rest}" if point and rest else "")


def _stem(word: str) -> str:
    """A light stemmer; only needs to give inflections of one word one name."""
    word = word.removesuffix("'s").replace("'", "")
    if len(word) > _LEAST_STEM + 1 and word.endswith("ies"):
        return word[:-3] + "y"
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _LEAST_STEM and not word.endswith("ss"):
            word = word[: -len(suffix)]
            if len(word) > _LEAST_STEM and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word[:-1] if len(word) > _LEAST_STEM and word.endswith("e") else word
