"""A number of each row, read from a column of its file: rows in normal form carry no other columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from luthier.data.column import number_in
from luthier.data.rows import Faults, Row, row_problem
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
            number = number_in(row.value, column)
            if isinstance(number, str):
                message = f"{number} `{column}`, which `dedup.score` needs as a number"
                faults.add(row_problem("D231", message, row.ref, hint="mend the row, or choose another `keep`"))
            elif row.ref in scores:
                message = "several rows begin on this line, so their scores cannot be told apart"
                faults.add(row_problem("D231", message, row.ref, hint="write one row a line (`.jsonl`)"))
            else:
                scores[row.ref] = number
    faults.raise_if_any()
    return scores
