"""A number of each row, read from a column of its file: rows in normal form carry no other columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from luthier.data.rows import Faults, Row, row_problem, show_value
from luthier.data.sources import read_rows, source_files
from luthier.data.types import RowRef
from luthier.recipe.schema import Source

__all__ = ["read_scores"]


def read_scores(sources: Sequence[Source], column: str) -> dict[RowRef, float]:
    """The column of every row of every source.

    Args:
        sources: As in the recipe; their order gives `RowRef.source`.
        column: Name, or keys of nested objects joined by dots.

    Raises:
        DataError: rows without the column, or with something else than a finite number in it; all are told.
    """
    scores: dict[RowRef, float] = {}
    faults = Faults()
    for index, source in enumerate(sources):
        notes: Counter[str] = Counter()
        for row in islice(read_rows(source_files(source, notes), index, notes=notes), source.limit):
            if not isinstance(row, Row):
                faults.add(row)
                continue
            value = _value(row.value, column)
            number = _number(value)
            if number is None:
                there = "no column" if value is _NOTHING else f"{show_value(value)} in column"
                message = f"{there} `{column}`, which `dedup.score` needs as a number"
                faults.add(row_problem("D231", message, row.ref, hint="mend the row, or choose another `keep`"))
            elif row.ref in scores:
                message = "several rows begin on this line, so their scores cannot be told apart"
                faults.add(row_problem("D231", message, row.ref, hint="write one row a line (`.jsonl`)"))
            else:
                scores[row.ref] = number
    faults.raise_if_any()
    return scores


_NOTHING = object()


def _value(row: dict[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for step in column.split("."):
        if not isinstance(value, dict) or step not in value:
            return _NOTHING
        value = value[step]
    return value


def _number(value: Any) -> float | None:
    """A number, or the text of one (cells of a CSV file are text)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
