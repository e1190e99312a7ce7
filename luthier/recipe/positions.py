"""Where each key and value of a recipe stands, so that every message can point at it.

A path is a tuple of keys and list indices, `("data", "train", 0, "path")`; written out it is
`data.train.0.path`, the form that overrides on the command line take as well.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from luthier.runtime.errors import Problem

__all__ = ["Document", "KeyPath", "Lines", "Locate", "Place", "Spot", "dotted", "nowhere"]

KeyPath = tuple[str | int, ...]

_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def dotted(path: Iterable[str | int]) -> str:
    """`data.train.0.path`."""
    return ".".join(str(part) for part in path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place a person can go to: a stretch of a line in a file, or an override."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    source: str | None = None
    length: int = 1

    def problem(self, code: str, message: str, *, hint: str | None = None) -> Problem:
        """A `Problem` here."""
        return Problem(
            code=code, message=message, hint=hint,
            file=self.file, line=self.line, column=self.column, source=self.source, length=self.length,
        )  # fmt: skip


class Locate(Protocol):
    """Finds the place of a dotted key."""

    def __call__(self, key: str, *, on: Literal["key", "value"] = "value") -> Place:
        """The place of `key`; of its nearest parent when the recipe does not have it."""
        ...


def nowhere(key: str, *, on: Literal["key", "value"] = "value") -> Place:
    """A `Locate` for recipes that come from no file."""
    return Place()


class Lines:
    """Offsets to lines and columns (both 1-based, in characters). Only line feeds and carriage returns break lines."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(found.end() for found in _LINE_BREAK.finditer(text))]

    def place(self, start: int, end: int, *, origin: str) -> Place:
        """The place of the characters from `start` up to `end`, as far as they stand on the first line."""
        line = bisect_right(self.starts, start)
        line_start = self.starts[line - 1]
        line_end = self.starts[line] if line < len(self.starts) else len(self.text)
        source = self.text[line_start:line_end].rstrip("\r\n")
        length = max(1, min(end, line_start + len(source)) - start)
        return Place(file=origin, line=line, column=start - line_start + 1, source=source, length=length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Character offsets of a key and its value in the text, or the override that set it."""

    key: tuple[int, int]
    value: tuple[int, int]
    override: str | None = None


@dataclass(slots=True, kw_only=True)
class Document:
    """A recipe before validation: plain values, and where they stand."""

    origin: str
    """File as the user named it, or what stands for it in messages."""
    text: str
    """Without a byte-order mark; empty if the recipe came from no file."""
    value: Any
    spots: dict[KeyPath, Spot] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """Found while reading."""
    bad: set[KeyPath] = field(default_factory=set)
    """Values that `problems` already speaks of; nothing more is said about them."""
    readable: bool = True
    """False when reading had to stop: `value` is then not all there is."""
    lines: Lines | None = None

    def locate(self, key: str, *, on: Literal["key", "value"] = "value") -> Place:
        """`Locate` over dotted keys."""
        parts = key.split(".") if key else []
        return self.place(tuple(int(part) if part.isdigit() else part for part in parts), on=on)

    def place(self, path: KeyPath, *, on: Literal["key", "value"] = "value") -> Place:
        """The place of a path, or of its nearest parent when the recipe does not have it."""
        known = path
        while known and known not in self.spots:
            known = known[:-1]
        spot = self.spots.get(known)
        if spot is None or (not self.text and spot.override is None):
            return Place(file=self.origin)
        if spot.override is not None:
            return Place(file=f"command line: {spot.override}")
        if not known:
            # Something is missing at the top: the file is named, no line is to blame.
            return Place(file=self.origin)
        # An empty value has no characters to point at: its key has.
        exact_value = on == "value" and known == path and spot.value[0] < spot.value[1]
        return self.place_of(*(spot.value if exact_value else spot.key))

    def place_of(self, start: int, end: int) -> Place:
        """The place of the characters from `start` up to `end`, as far as they stand on the first line."""
        if self.lines is None:
            self.lines = Lines(self.text)
        return self.lines.place(start, end, origin=self.origin)

    def in_order(self, problems: Iterable[Problem]) -> list[Problem]:
        """As they stand in the file; then those of other files; then of the command line, as they were given."""
        given = {f"command line: {override}": index for index, override in enumerate(self.overrides, 1)}

        def order(found: Problem) -> tuple[int, bool, str, int, int]:
            file = found.file or self.origin
            other = file != self.origin and file not in given
            return given.get(file, 0), other, file if other else "", found.line or 0, found.column or 0

        return sorted(problems, key=order)
