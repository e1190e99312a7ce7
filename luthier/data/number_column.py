"""A number of each row, read from a column of its file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from luthier.data.rows import Faults, Row, row_problem, show_value
from luthier.runtime.errors import Problem

__all__ = ["NumberColumn"]

_NOTHING = object()


class NumberColumn:
    """A column with a number, and the rows that have none in it.

    Args:
        name: Of the column, or keys of nested objects joined by dots.
        code: Of the problems.
        needs: What needs the number, for messages: `dedup.score`.
        hint: What else the user may do about a row without a number.
    """

    def __init__(self, name: str, *, code: str, needs: str, hint: str) -> None:
        self.name, self.code, self.hint = name, code, hint
        self._needs = f"which {needs} needs as a number"
        self._faults = Faults()
        self._rows: Counter[str] = Counter()
        self._without: dict[str, Faults] = {}

    def number(self, row: Row) -> float | None:
        """The number of a row, also as text (cells of a CSV file are text); None where it has none, which is kept."""
        file = row.ref.file
        self._rows[file] += 1
        value = _value(row.value, self.name)
        number = _number(value)
        if value is _NOTHING:
            self._without.setdefault(file, Faults()).add(self._problem("no column", row))
        elif number is None:
            self._faults.add(self._problem(f"{show_value(value)} in column", row))
        return number

    def report(self, faults: Faults) -> None:
        """Add what is wrong: one problem a row, but one for a whole file that lacks the column."""
        for file, own in self._without.items():
            if own.total == self._rows[file] > 1:
                message = f"none of the {own.total:,} rows has the column `{self.name}`, {self._needs}"
                faults.add(Problem(code=self.code, message=message, file=file, hint=f"another column, or {self.hint}"))
            else:
                faults.join(own)
        faults.join(self._faults)

    def _problem(self, there: str, row: Row) -> Problem:
        message = f"{there} `{self.name}`, {self._needs}"
        return row_problem(self.code, message, row.ref, hint=f"mend the row, or {self.hint}")


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for step in column.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return _NOTHING
        value = value[step]
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
