"""One row as it stands in a file, the limits on rows, and the list of what is wrong with them.

Readers yield `Row` or `Problem`, in the order of the file, so that one pass finds everything
that is wrong and a file of any size is read in bounded memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from luthier.data.types import RowRef
from luthier.runtime.errors import DataError, Problem

__all__ = [
    "MAX_DEPTH",
    "MAX_KEYS",
    "MAX_LINE_BYTES",
    "MAX_MESSAGES",
    "Faults",
    "Row",
    "number_of",
    "row_problem",
    "show_value",
]

MAX_LINE_BYTES = 32 * 2**20
"""Longest line or row. A row of 32 MiB is about eight million tokens: surely a broken file."""
MAX_DEPTH = 100
"""Deepest nesting of objects and lists. Python's parser gives up near 1,000; real rows stay under 20."""
MAX_KEYS = 10_000
"""Most keys in one object."""
MAX_MESSAGES = 10_000
"""Most messages in one conversation."""

_MAX_SOURCE_CHARACTERS = 4_000
_MAX_KEPT_PROBLEMS = 1_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One object of a file, values exactly as they stand there."""

    value: dict[str, Any]
    ref: RowRef
    text: str | None = None
    """The JSON text of the row when it begins at column 1 of its line; lets a problem point at its column."""


@dataclass(slots=True)
class Faults:
    """Collects problems; counts all of them and keeps the first thousand."""

    kept: list[Problem] = field(default_factory=list)
    total: int = 0

    def add(self, problems: Problem | Iterable[Problem]) -> None:
        """Record one problem, or several."""
        for problem in [problems] if isinstance(problems, Problem) else problems:
            self.total += 1
            if len(self.kept) < _MAX_KEPT_PROBLEMS:
                self.kept.append(problem)

    def join(self, other: Faults) -> None:
        """Take over all that another one found, and keep the order of files and lines."""
        files = list(dict.fromkeys(problem.file for problem in [*self.kept, *other.kept]))
        found = sorted([*self.kept, *other.kept], key=lambda problem: (files.index(problem.file), problem.line or 0))
        self.kept, self.total = found[:_MAX_KEPT_PROBLEMS], self.total + other.total

    def raise_if_any(self) -> None:
        """Raise all that was found.

        Raises:
            DataError: something was found.
        """
        if self.total:
            raise DataError(problems=self.kept, total=self.total)


def row_problem(
    code: str,
    message: str,
    ref: RowRef,
    *,
    text: str | None = None,
    column: int | None = None,
    hint: str | None = None,
) -> Problem:
    """Build a problem of one row, with the piece of its text that fits into a message.

    Control characters are shown as `\N{REPLACEMENT CHARACTER}`, one for one: a row cannot move the cursor
    of a terminal, and columns stay right.
    """
    source = None
    if text is not None:
        if column is None or column <= _MAX_SOURCE_CHARACTERS:
            source = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[:_MAX_SOURCE_CHARACTERS])
        else:
            message += f", near {show_value(text[max(0, column - 31) : column + 29])}"
    return Problem(code=code, message=message, file=ref.file, line=ref.line, column=column, source=source, hint=hint)


def show_value(value: Any, width: int = 60) -> str:
    """A short, printable form of any value for a message."""
    if isinstance(value, str):
        value = value[: width + 1]
    elif isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    elif value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def number_of(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
