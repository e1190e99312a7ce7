"""What the curated steps of a recipe hand on from one to the next.

Each step is a function of a `Curation` that takes rows out of `train` (`drop`), or puts a changed row in the place of
another (`change`), and says so; nothing leaves or changes without an entry. `apply.py` lists the steps in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.curated import Curated
from luthier.data.types import Conversation, Dropped

__all__ = ["Curation", "Step"]


@dataclass(slots=True)
class Curation:
    """The rows so far."""

    train: list[Conversation]
    """Training rows of all sources that stay, in order."""
    held_out: Sequence[Conversation]
    """Rows of `data.validation.path`; a yardstick: no step drops or changes them."""
    dropped: list[Dropped] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    """Each dropped or changed row in full, for `data/duplicates.jsonl`."""
    groups: Mapping[str, str] | None = None
    """As in `Curated`."""
    report: dict[str, Any] = field(default_factory=dict)
    """Settings and counts of each step, under its key in the recipe."""

    def drop(self, taken: Mapping[int, tuple[Dropped, dict[str, Any]]]) -> None:
        """Take out rows.

        Args:
            taken: Index in `train` -> why, in one line, and the record in full.
        """
        for index in sorted(taken):
            why, record = taken[index]
            self.dropped.append(why)
            self.records.append(record)
        self.train = [row for index, row in enumerate(self.train) if index not in taken]

    def change(self, changed: Mapping[int, tuple[Conversation, dict[str, Any]]]) -> None:
        """Put changed rows in the place of others.

        Args:
            changed: Index in `train` -> the new row, and the record in full.
        """
        for index in sorted(changed):
            self.train[index], record = changed[index]
            self.records.append(record)

    def done(self) -> Curated:
        """What `prepare` goes on with."""
        return Curated(rows=self.train, dropped=self.dropped, records=self.records, groups=self.groups,
                       report=self.report)  # fmt: skip


Step = Callable[[Curation], None]
