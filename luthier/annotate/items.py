"""Rows of files as items to judge: the normal form, the columns no format reads, and a hash of the content."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.data.content import row_hash
from luthier.data.formats import SAMPLE_ROWS, choose_layout, verdict
from luthier.data.layout import Layout
from luthier.data.normalise import Empty, normalise
from luthier.data.rows import Faults, Row, number_of
from luthier.data.sources import read_rows, source_files
from luthier.data.tables import table_schema, typed_problems
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, Problem

__all__ = ["Item", "Items", "read_items"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a file."""

    row: Row
    conversation: Conversation
    hash: str
    """Hash of the normal form (`row_hash`): the same content has it in any file, at any line, in any format."""
    others: tuple[str, ...]
    """Columns that no field of the format reads, in the order of the row."""
    empty: str | None = None
    """Why the row has nothing to train on as it stands: an empty answer, or two equal ones."""

    @property
    def ref(self) -> RowRef:
        """Where the row stands."""
        return self.row.ref

    @property
    def kind(self) -> Literal["single", "pair"]:
        """`pair`: two answers to rank; `single`: one row to accept or reject (a rated answer, too)."""
        return "pair" if self.conversation.kind == "pair" else "single"


@dataclass(frozen=True, slots=True)
class Items:
    """All rows of all files, in order."""

    all: list[Item]
    verdicts: list[str]
    """One line for each path: its format, and why."""
    by_hash: dict[str, list[int]] = field(default_factory=dict)
    """Hash -> indices in `all`; copies of a row are judged once."""

    def __post_init__(self) -> None:
        for index, item in enumerate(self.all):
            self.by_hash.setdefault(item.hash, []).append(index)

    def first(self, hash_: str) -> Item | None:
        """The first row with this content."""
        places = self.by_hash.get(hash_)
        return self.all[places[0]] if places else None

    @property
    def distinct(self) -> list[int]:
        """Index of the first row of each content."""
        return [places[0] for places in self.by_hash.values()]


def read_items(paths: Sequence[str], *, format: str = "auto", map: Mapping[str, str] | None = None) -> Items:  # noqa: A002
    """Read every row of every file, in any format the readers know.

    Args:
        paths: Files, folders or globs.
        format: Of the rows, as in `data.train`.
        map: Field -> column, as in `data.train`.

    Raises:
        DataError: files or rows that cannot be read; all are told.
    """
    items: list[Item] = []
    verdicts: list[str] = []
    problems: list[Problem] = []
    for index, path in enumerate(paths):
        try:
            source = Source.model_validate({"path": path, "format": format, "map": dict(map or {})})
            found, line = _read(source, index)
        except DataError as error:
            problems += error.problems
            continue
        items += found
        verdicts.append(f"{path}: {line}")
    if problems:
        raise DataError(problems=problems)
    return Items(items, verdicts)


def _read(source: Source, index: int) -> tuple[list[Item], str]:
    notes: Counter[str] = Counter()
    faults = Faults()
    files = source_files(source, notes)
    rows = read_rows(files, index, notes=notes)
    head = list(itertools.islice(rows, SAMPLE_ROWS))
    sample = [row.value for row in head if isinstance(row, Row)]
    if not sample:
        faults.add(row for row in itertools.chain(head, rows) if isinstance(row, Problem))
        faults.raise_if_any()
        raise DataError(problems=[Problem(code="D206", message="no rows", file=source.path)])
    try:
        layout = choose_layout(source.format, source.map, sample, file=source.path)
    except DataError as error:
        # The broken lines are told together with the format; they may be the reason for it.
        faults.add(row for row in itertools.chain(head, rows) if isinstance(row, Problem))
        faults.add(error.problems)
        faults.raise_if_any()
        raise
    for file in files:
        if file.kind in {"parquet", "arrow"}:
            faults.add(typed_problems(table_schema(file), layout, file=file.shown))
    faults.raise_if_any()
    items: list[Item] = []
    for row in itertools.chain(head, rows):
        if isinstance(row, Problem):
            faults.add(row)
            continue
        found = _item(row, layout)
        if isinstance(found, Item):
            items.append(found)
        else:
            faults.add(found)
    faults.raise_if_any()
    told = [verdict(layout, len(items))]
    told += [number_of(count, what) if what.isidentifier() else f"{count:,} {what}" for what, count in notes.items()]
    return items, "; ".join(told)


def _item(row: Row, layout: Layout) -> Item | list[Problem]:
    outcome = normalise(row, layout)
    if isinstance(outcome, list):
        return outcome
    conversation = outcome.conversation if isinstance(outcome, Empty) else outcome
    used = layout.used(list(row.value))
    return Item(
        row=Row(value=row.value, ref=row.ref),  # the text of the line is no longer needed
        conversation=conversation,
        hash=row_hash(conversation),
        others=tuple(name for name in row.value if name not in used),
        empty=outcome.detail if isinstance(outcome, Empty) else None,
    )
