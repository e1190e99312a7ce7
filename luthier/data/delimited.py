"""CSV and TSV: every cell is text and stays the text it is; `007`, `1e5`, `null` and dates change nothing."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from luthier.data.files import DataFile
from luthier.data.rows import MAX_LINE_BYTES, Row, number_of, row_problem, show_value
from luthier.data.streams import open_bytes, split_lines
from luthier.data.types import RowRef
from luthier.runtime.errors import Problem

__all__ = ["read_delimited"]

_MAX_ERRORS = 1_000
"""After so many broken rows the quoting is lost and nothing that follows can be trusted."""


def read_delimited(file: DataFile, *, source: int, notes: Counter[str]) -> Iterator[Row | Problem]:
    """Yield the rows below the header; `ref.line` is the line on which a row begins.

    An empty cell is the empty string. A row with more or fewer cells than the header is a problem.
    """
    with open_bytes(file.path, file.shown) as stream, _long_cells():
        lines = _Lines(split_lines(stream, file=file.shown, source=source, notes=notes))
        delimiter = "\t" if file.kind == "tsv" else ","
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        errors = 0
        while errors < _MAX_ERRORS:
            ref = RowRef(file.shown, lines.number + 1, source)
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                errors += 1
                yield lines.take_problem() or row_problem("D211", f"broken row: {error}", ref, hint=_QUOTES)
                continue
            problem = lines.take_problem()
            if problem is not None:
                errors += 1
                yield problem
            elif not cells:
                notes["blank lines skipped"] += 1
            elif header is None:
                header, faults = _header(cells, ref, delimiter)
                yield from faults
                if faults:
                    return
            else:
                yield _row(cells, header, ref)


_QUOTES = (
    'a cell with quotes, delimiters or line breaks must stand in quotes, with each quote inside doubled: "a ""b"" c"'
)


class _Lines:
    """Lines for `csv.reader`, counted; remembers the first bad line since it was last asked."""

    def __init__(self, lines: Iterator[tuple[RowRef, str | Problem]]) -> None:
        self._lines = lines
        self._problem: Problem | None = None
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        ref, line = next(self._lines)
        self.number = ref.line
        if isinstance(line, str) and "\x00" in line:
            line = row_problem("D203", "NUL character", ref, text=line, column=line.index("\x00") + 1)
        if isinstance(line, Problem):
            self._problem = self._problem or line
            return "\n"
        return line + "\n"

    def take_problem(self) -> Problem | None:
        """The problem met since the last call."""
        problem, self._problem = self._problem, None
        return problem


def _header(cells: list[str], ref: RowRef, delimiter: str) -> tuple[list[str], list[Problem]]:
    repeated = sorted(name for name, count in Counter(cells).items() if count > 1)
    if repeated:
        listed = ", ".join(show_value(name) for name in repeated)
        return cells, [
            row_problem("D211", f"column names stand twice: {listed}", ref, hint="rename them in the first line")
        ]
    if len(cells) == 1:
        other = next((char for char in ";\t|," if char != delimiter and char in cells[0]), None)
        if other:
            message = f"one column only, named {show_value(cells[0])}: the cells seem to be divided by {other!r}"
            hint = f"write the file with {delimiter!r} between cells (a `.tsv` file has tabs)"
            return cells, [row_problem("D211", message, ref, hint=hint)]
    return cells, []


def _row(cells: list[str], header: list[str], ref: RowRef) -> Row | Problem:
    if len(cells) != len(header):
        message = f"{number_of(len(cells), 'cell')}, but the header has {len(header):,}: {', '.join(header)}"
        return row_problem("D211", message, ref, hint=_QUOTES)
    return Row(value=dict(zip(header, cells, strict=True)), ref=ref)


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module refuses cells over 131,072 characters, by a limit that is global: raise it, then put it back."""
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
