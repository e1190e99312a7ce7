"""What a log says: the standing decision, tags and note of each annotator on each content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from luthier.annotate.items import Item, Items
from luthier.annotate.record import DECISIONS, Record

__all__ = ["Labels", "Outcome", "Standing", "lost_of", "outcome_of"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one annotator on one content."""

    decision: Record | None = None
    skipped: bool = False
    """Skipped, and not decided on."""
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision comes to; two annotators agree if theirs are equal."""

    category: str
    """accept, reject, edit; of pairs first, second, tie, reject."""
    texts: tuple[tuple[int, int, str], ...] = ()
    """Edited texts: (answer, part, text)."""


def outcome_of(decision: Record) -> Outcome:
    """The outcome of a decision."""
    category = str(decision.choice) if decision.action == "choose" else decision.action
    return Outcome(category, tuple(sorted((edit.answer, edit.part, edit.text) for edit in decision.edits)))


@dataclass(slots=True)
class Labels:
    """Entries by annotator and content; an entry taken back with `undo` counts no more."""

    entries: dict[str, dict[str, list[Record]]] = field(default_factory=dict)
    """Annotator -> content -> entries, in the order of the log."""
    annotators: dict[str, None] = field(default_factory=dict)
    """In the order in which they first appear."""
    _undone: set[str] = field(default_factory=set)
    _ids: set[str] = field(default_factory=set)

    def add(self, records: Iterable[Record]) -> None:
        """Take up entries; an entry that is there already (logs put together) counts once."""
        for record in records:
            if record.id in self._ids:
                continue
            self._ids.add(record.id)
            self.annotators.setdefault(record.annotator)
            if record.action == "undo":
                self._undone.add(record.undoes or "")
            else:
                self.entries.setdefault(record.annotator, defaultdict(list))[record.hash].append(record)

    def standing(self, annotator: str, hash_: str) -> Standing:
        """What stands of an annotator on a content."""
        decision, skipped, note = None, False, ""
        tags: dict[str, None] = {}
        for record in self.entries.get(annotator, {}).get(hash_, ()):
            if record.id in self._undone:
                continue
            if record.action in DECISIONS:
                decision, skipped = record, False
            elif record.action == "skip":
                skipped = decision is None
            elif record.action == "note":
                note = record.text or ""
            elif record.action == "tag":
                tags.setdefault(record.text or "")
            elif record.action == "untag":
                tags.pop(record.text or "", None)
        return Standing(decision, skipped, tuple(tags), note)

    def decisions(self, hash_: str) -> dict[str, Record]:
        """Annotator -> standing decision on a content."""
        found = {name: self.standing(name, hash_).decision for name in self.annotators}
        return {name: record for name, record in found.items() if record is not None}

    def last_of(self, annotator: str) -> Record | None:
        """The last entry of an annotator that is not taken back: what `undo` would take back."""
        own = [
            record
            for records in self.entries.get(annotator, {}).values()
            for record in records
            if record.id not in self._undone
        ]
        return max(own, key=lambda record: (record.time, record.id), default=None)

    def hashes(self) -> list[str]:
        """Contents with an entry."""
        return list(dict.fromkeys(hash_ for own in self.entries.values() for hash_ in own))


def lost_of(labels: Labels, items: Items) -> tuple[dict[str, Record], list[Record]]:
    """Decisions on contents that are in the files no more.

    Returns:
        Rows that changed, as hash of the row now at the place of the decision -> the old decision; and the decisions
        whose row is gone.
    """
    here = {(item.ref.file, item.ref.line): item for item in items.all}
    changed: dict[str, Record] = {}
    gone: list[Record] = []
    for hash_ in labels.hashes():
        if hash_ in items.by_hash:
            continue
        for record in labels.decisions(hash_).values():
            now: Item | None = here.get((record.file, record.line))
            if now is not None and not labels.decisions(now.hash):
                changed[now.hash] = record
            else:
                gone.append(record)
    return changed, gone
