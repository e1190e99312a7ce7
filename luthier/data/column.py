"""A number of a row, from a column of its file: rows in normal form carry no other columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luthier.data.rows import show_value

__all__ = ["number_in"]

_NOTHING = object()


def number_in(row: Mapping[str, Any], column: str) -> float | str:
    """The finite number in a column, or what is there instead, for a message: `no column`, `'high' in column`.

    Args:
        row: As in the file. The text of a number is one, too: cells of a CSV file are text.
        column: Name, or keys of nested objects joined by dots.
    """
    value = _value(row, column)
    if value is _NOTHING:
        return "no column"
    number = _number(value)
    return f"{show_value(value)} in column" if number is None else number


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for step in column.split("."):
        if not isinstance(value, dict) or step not in value:
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
