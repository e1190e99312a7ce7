"""The columns of a task's rows as they stand in the file, for graders (`{{ item.COLUMN }}`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from luthier.data.rows import Row
from luthier.data.sources import read_rows, source_files
from luthier.evaluate.task import TaskRow
from luthier.recipe.schema import Source

__all__ = ["with_columns"]


def with_columns(rows: Sequence[TaskRow], source: Source) -> tuple[TaskRow, ...]:
    """The same rows, each with its columns."""
    notes: Counter[str] = Counter()
    found = {
        (row.ref.file, row.ref.line): row.value
        for row in read_rows(source_files(source, notes), 0, notes=notes)
        if isinstance(row, Row)
    }
    return tuple(replace(row, item=found[row.ref.file, row.ref.line]) for row in rows)
