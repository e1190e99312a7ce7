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
    """Each dropped row in full, and what a step only reports."""
    full: dict[int, dict[str, Any]] = field(default_factory=dict)
    """id of an item of `dropped` -> its record, for `data/losses.jsonl`."""
    changes: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """id of a row in `train` -> what was changed in it, in order."""
    origin: dict[int, Conversation] = field(default_factory=dict)
    """id of a changed row in `train` -> the row as it was read."""
    scores: dict[int, float] = field(default_factory=dict)
    """id of a row in `train` -> the score a judge gave it."""
    scored: list[dict[str, Any]] = field(default_factory=list)
    """Every score with the place of its row, dropped ones too, for `data/scores.jsonl`."""
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
            self.records.append({**record, "detail": record.get("detail", why.detail)})
            self.full[id(why)] = self.records[-1]
            self.changes.pop(id(self.train[index]), None)
            self.scores.pop(id(self.train[index]), None)
            self.origin.pop(id(self.train[index]), None)
        self.train = [row for index, row in enumerate(self.train) if index not in taken]

    def change(self, changed: Mapping[int, tuple[Conversation, dict[str, Any]]]) -> None:
        """Put changed rows in the place of others.

        Args:
            changed: Index in `train` -> the new row, and the record in full.
        """
        for index in sorted(changed):
            old, (new, record) = self.train[index], changed[index]
            self.train[index] = new
            self.changes[id(new)] = [*self.changes.pop(id(old), []), record]
            self.origin[id(new)] = self.origin.pop(id(old), old)
            if id(old) in self.scores:
                self.scores[id(new)] = self.scores.pop(id(old))

    def done(self) -> Curated:
        """What `prepare` goes on with."""
        return Curated(rows=self.train, dropped=self.dropped, records=self.records, full=self.full,
                       changes=self.changes, scored=self.scored, groups=self.groups, report=self.report)  # fmt: skip


Step = Callable[[Curation], None]
