"""Find the answer in a text: by a regular expression with a time limit, or the last number.

The texts come from a model, so they may be anything: both searches end, in time linear in the
text for numbers and within `PATTERN_SECONDS` for patterns, whatever the text and the pattern.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import Any

# `regex` (a dependency of transformers) is `re` with a time limit, which `re` lacks.
import regex

__all__ = ["PATTERN_SECONDS", "Number", "PatternTimeoutError", "compile_pattern", "first_group", "last_number"]

PATTERN_SECONDS = 1.0
# Longer runs of digits are not read as numbers: nobody means them, and exact arithmetic on them costs.
MAX_DIGITS = 400

_DIGITS = rf"\d{{1,{MAX_DIGITS}}}(?!\d)"
# 1,234,567 | 1234567 | 12.50 | .5 | 1e-3. Not a sign: what stands before a number decides whether `-` is one.
_NUMBER = re.compile(
    rf"(?:(?<!\d)(?:\d{{1,3}}(?:,\d{{3}}){{1,40}}(?!\d)|{_DIGITS})(?:\.{_DIGITS})?|(?<![\d.])\.{_DIGITS})"
    r"(?:[eE][-+]?\d{1,3}(?![\d.]))?",
    re.ASCII,
)
_MINUS = "-\N{MINUS SIGN}"
_CURRENCY = "$\N{POUND SIGN}\N{EURO SIGN}\N{YEN SIGN}"

Number = tuple[Fraction, str]
"""Exact value, and how it is written without currency and thousands separators."""


class PatternTimeoutError(Exception):
    """A pattern took longer than `PATTERN_SECONDS` on one text."""


def compile_pattern(pattern: str) -> Any:
    """Compile a pattern with at least one group.

    Raises:
        ValueError: not a regular expression, or one without a group; the text says what is wrong.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    if compiled.groups < 1:
        raise ValueError("has no group: put the answer in parentheses")
    return compiled


def first_group(pattern: Any, text: str) -> str | None:
    """What the first group of the first match caught, or None.

    Raises:
        PatternTimeoutError: the search took too long (a pattern that backtracks without end).
    """
    try:
        match = pattern.search(text, timeout=PATTERN_SECONDS)
    except TimeoutError as error:
        raise PatternTimeoutError from error
    return None if match is None else match.group(1)


def last_number(text: str) -> Number | None:
    """The last number of a text.

    Currency signs, thousands separators, a percent sign and a full stop after the number do not
    count: `$1,234.50.` is 1234.5 and `50%` is 50. `-` is a sign unless a word, a number or a closing
    bracket stands before it (`10-3` ends in 3). `3/4` without spaces is a fraction, `1/2/2024` is not.
    """
    matches = list(deque(_NUMBER.finditer(text), maxlen=2))
    if not matches:
        return None
    last = matches[-1]
    value, shown = _value(last.group())
    start = last.start()
    if len(matches) > 1 and _is_fraction(text, matches, value):
        top, shown_top = _value(matches[-2].group())
        value, shown, start = top / value, f"{shown_top}/{shown}", matches[-2].start()
    if _negative(text, start):
        value, shown = -value, "-" + shown
    return value, shown


def _value(digits: str) -> tuple[Fraction, str]:
    shown = digits.replace(",", "")
    return Fraction(shown), shown


def _is_fraction(text: str, matches: list[re.Match[str]], bottom: Fraction) -> bool:
    top, last = matches[-2], matches[-1]
    joined = text[top.end() : last.start()] == "/"
    part_of_a_date = text[top.start() - 1 : top.start()] == "/" or text[last.end() : last.end() + 1] == "/"
    return joined and not part_of_a_date and bottom != 0


def _negative(text: str, start: int) -> bool:
    """Whether a minus sign belongs to the number at `start`: `-5`, `-$5`, `$-5`."""
    before = start - 1
    if before >= 0 and text[before] in _CURRENCY:
        before -= 1
    if before < 0 or text[before] not in _MINUS:
        return False
    before -= 1
    if before >= 0 and text[before] in _CURRENCY:
        before -= 1
    return before < 0 or not (text[before].isalnum() or text[before] in ")]}%.")
