"""Control tokens that the data of a row spells: found by putting placeholders of the same length in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.data.encode import Interval
from luthier.data.sandbox import TemplateFailure

__all__ = ["control_runs", "placeholder_for", "strings_of", "substitute"]

# Stand-ins for control tokens in data; private-use characters that no text should hold.
_PLACEHOLDERS = ("\U0010fff0", "\U0010fff1", "\U000fff00")


def placeholder_for(strings: Sequence[str]) -> str | None:
    """A character that none of these texts holds; None if they hold all that there are."""
    return next((c for c in _PLACEHOLDERS if not any(c in text for text in strings)), None)


def control_runs(text: str, hidden: Sequence[int], pattern: re.Pattern[str]) -> list[Interval]:
    """Group marked characters into the control tokens they spell.

    Raises:
        TemplateFailure: they stand in another order than in the data.
    """
    runs: list[Interval] = []
    position = 0
    while position < len(hidden):
        match = pattern.match(text, hidden[position])
        if match is None:
            raise TemplateFailure("the template moves control tokens of messages")
        runs.append(match.span())
        position += match.end() - match.start()
    return runs


def strings_of(value: Any) -> Iterator[str]:
    """Every string in nested data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_of(key)
            yield from strings_of(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings_of(item)


def substitute(value: Any, pattern: re.Pattern[str], mark: str) -> Any:
    """The same data with each control token replaced by as many placeholders."""
    if isinstance(value, str):
        return pattern.sub(lambda match: mark * len(match.group()), value)
    if isinstance(value, Mapping):
        return {substitute(k, pattern, mark): substitute(v, pattern, mark) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [substitute(item, pattern, mark) for item in value]
    return value
