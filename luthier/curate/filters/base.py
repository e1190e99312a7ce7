"""What a filter is: a look at rows that says of each whether it stays, goes, or is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.data.types import Changed, Conversation

__all__ = ["Change", "Drop", "Filter", "Mark", "RowFilter", "Verdict"]


@dataclass(frozen=True, slots=True)
class Mark:
    """The text that decided, for a person to look at; never stored."""

    where: str
    """`messages.2`."""
    text: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The row goes."""

    detail: str
    """Why, in one line; holds no personal data."""
    mark: Mark | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Further fields of the record in `data/losses.jsonl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The row stays, changed."""

    row: Conversation
    what: Changed
    detail: str
    mark: Mark | None = None
    facts: dict[str, Any] = field(default_factory=dict)


Verdict = Drop | Change | None


class Filter(Protocol):
    """One filter with its settings."""

    def look(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        """A verdict for each row, in order; None: it stays as it is."""

    def report(self) -> dict[str, Any]:
        """Counts of its own, once it has looked (rows it could not judge, costs)."""


@dataclass(slots=True)
class RowFilter:
    """A filter that judges each row by itself. Subclasses write `judge`."""

    def judge(self, row: Conversation) -> Verdict:
        """The verdict on one row."""
        raise NotImplementedError

    def look(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        """As `Filter.look`."""
        return map(self.judge, rows)

    def report(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}
