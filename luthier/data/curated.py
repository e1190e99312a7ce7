"""What a look at all rows as a set decides, between reading and tokenising (made by `luthier.curate`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.types import Conversation, Dropped

__all__ = ["Curate", "Curated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """Which training rows stay, and what must stay together."""

    rows: list[Conversation]
    """Training rows that stay, in order."""
    dropped: list[Dropped]
    """The others."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Each dropped row in full, and what a step only reports."""
    full: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """id of an item of `dropped` -> its record, for `data/losses.jsonl`."""
    changes: Mapping[int, Sequence[dict[str, Any]]] = field(default_factory=dict)
    """id of a row in `rows` -> what was changed in it, each in full."""
    scored: list[dict[str, Any]] = field(default_factory=list)
    """Scores that a judge gave, with the places of their rows, for `data/scores.jsonl`."""
    groups: Mapping[str, str] | None = None
    """`group_hash` of a row -> key of its group; rows of a group are held out together, other rows alone."""
    report: dict[str, Any] = field(default_factory=dict)
    """Settings and counts, for the manifest."""


Curate = Callable[[Sequence[Conversation], Sequence[Conversation]], Curated]
"""From the training rows of all sources and the rows of `data.validation.path`."""
