"""Rows that a person named, one `FILE:LINE` a line: what the map saves (`rows.txt`), or a list made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.curate.filters.base import Drop, Verdict
from luthier.data.types import Conversation
from luthier.recipe.filter_schema import ListedFilter
from luthier.recipe.paths import expand, is_url
from luthier.runtime.errors import DataError, Problem

__all__ = ["Listed"]

_SHOWN = 20
_Place = tuple[str, int]


class Listed:
    """Drop the named rows, or all others.

    Raises:
        DataError: a list that cannot be read, or lines of it that name no row; all are told.
    """

    def __init__(self, settings: ListedFilter) -> None:
        self.settings = settings
        self._known: dict[str, str] = {}
        self._named: dict[_Place, tuple[str, int]] = {}
        """File and line of a row -> list and line that name it."""
        problems = [problem for file in settings.files for problem in self._read(file)]
        if problems:
            raise DataError(problems=problems[:_SHOWN], total=len(problems))
        self._elsewhere = 0

    def look(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        """As `Filter.look`.

        Raises:
            DataError: a named line of these files where no row begins, or no name that is of these files.
        """
        self._check(rows)
        drops_named = self.settings.action == "drop"
        for row in rows:
            by = self._named.get((self._same(row.ref.file), row.ref.line))
            if (by is not None) != drops_named:
                yield None
            elif by is not None:
                yield Drop(detail=f"named in {by[0]}, line {by[1]}")
            else:
                yield Drop(detail=f"not named in {', '.join(self.settings.files)}")

    def report(self) -> dict[str, Any]:
        """Rows named in the lists, and those of other files."""
        return {"named": len(self._named), "of_other_files": self._elsewhere}

    def _read(self, file: str) -> Iterator[Problem]:
        try:
            lines = expand(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            yield Problem(code="D233", message=f"the list cannot be read: {error}", file=file)
            return
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, colon, place = text.rpartition(":")
            if not colon or not name or not (place.isascii() and place.isdigit()):
                message = f"`{text[:80]}` names no row"
                yield Problem(code="D233", message=message, file=file, line=number, hint="write FILE:LINE")
            else:
                self._named.setdefault((self._same(name), int(place)), (file, number))

    def _check(self, rows: Sequence[Conversation]) -> None:
        places = {(self._same(row.ref.file), row.ref.line) for row in rows}
        files = {file for file, _ in places}
        self._elsewhere = sum(file not in files for file, _ in self._named)
        wrong = [by for place, by in self._named.items() if place[0] in files and place not in places]
        problems = [
            Problem(
                code="D234", message="no row begins there, or it has nothing to train on", file=file, line=line,
                hint="was the data file changed since the list was saved?",
            )
            for file, line in wrong[:_SHOWN]
        ]  # fmt: skip
        total = len(wrong)
        if self._named and self._elsewhere == len(self._named):
            named, read = min(file for file, _ in self._named), min(files, default="no file")
            message = f"none of the {len(self._named):,} named rows is of the files read: {named}; read is {read}"
            problems, total = [Problem(code="D234", message=message, file=self.settings.files[0])], 1
        if problems:
            raise DataError(problems=problems, total=total)

    def _same(self, name: str) -> str:
        """One text for a file, however it was written: relative, absolute, through a link."""
        if name not in self._known:
            path = Path(name)
            self._known[name] = name if is_url(name) or not path.exists() else str(path.resolve())
        return self._known[name]
