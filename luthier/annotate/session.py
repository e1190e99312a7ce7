"""One annotator before the rows: what is shown next, what is decided, what is taken back."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from luthier.annotate.edits import Edit, Slot, apply_edits
from luthier.annotate.items import Item, Items
from luthier.annotate.labels import Labels, Standing, lost_of
from luthier.annotate.log import Log
from luthier.annotate.order import seeded
from luthier.annotate.record import DECISIONS, MAX_NAME, MAX_TEXT, Action, Record, Side
from luthier.annotate.view import Shown, shown
from luthier.runtime.errors import DataError, RecipeError

__all__ = ["Desk", "Session", "check_name"]

MAX_EDIT = 1_000_000
"""Most characters in an edited text."""


def check_name(name: str) -> str:
    """The name of an annotator without white space around it.

    Raises:
        RecipeError: empty, too long, or with characters that cannot be printed.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        message = f"the name of an annotator has 1 to {MAX_NAME} printable characters, got {name[:MAX_NAME]!r}"
        raise RecipeError(code="D294", message=message)
    return name


@dataclass(slots=True)
class Desk:
    """The rows and the log, shared by all annotators of a process."""

    items: Items
    log: Log
    places: Sequence[int]
    """Indices in `items.all`, one of each content, in the order to show them."""
    seed: int = 0
    blind: bool = True
    labels: Labels = field(default_factory=Labels)
    changed: dict[str, Record] = field(default_factory=dict)
    """Rows that changed since they were decided on: hash -> the old decision."""
    gone: list[Record] = field(default_factory=list)
    """Decisions whose row is in the files no more."""
    hashes: frozenset[str] = frozenset()
    """Of the rows that are shown."""

    def __post_init__(self) -> None:
        self.hashes = frozenset(self.items.all[place].hash for place in self.places)
        self.labels.add(self.log.records)
        self.changed, self.gone = lost_of(self.labels, self.items)


@dataclass(slots=True)
class Session:
    """One annotator."""

    desk: Desk
    annotator: str
    skipped_too: bool = False
    """Show rows again that were skipped."""
    clock: Callable[[], float] = time.monotonic
    at: int | None = None
    """Position in `desk.places` of the row that is shown; None: nothing is left."""
    _since: float = 0.0

    def __post_init__(self) -> None:
        self.annotator = check_name(self.annotator)
        self.next()

    @property
    def item(self) -> Item | None:
        """The row that is shown."""
        return None if self.at is None else self.desk.items.all[self.desk.places[self.at]]

    def standing(self) -> Standing:
        """What stands of this annotator on the row that is shown."""
        return self.desk.labels.standing(self.annotator, self.item.hash) if self.item else Standing()

    def view(self) -> Shown | None:
        """The row as blocks of text."""
        if self.item is None:
            return None
        return shown(self.item, left=self._left(self.item), blind=self.desk.blind)

    def counts(self) -> dict[str, int]:
        """Rows, and how many of them this annotator decided on and skipped."""
        labels = self.desk.labels
        hashes = [hash_ for hash_ in labels.entries.get(self.annotator, {}) if hash_ in self.desk.hashes]
        found = [labels.standing(self.annotator, hash_) for hash_ in hashes]
        decided = sum(one.decision is not None for one in found)
        return {"rows": len(self.desk.places), "decided": decided, "skipped": sum(one.skipped for one in found)}

    # --- moving ---------------------------------------------------------------------------------------------------

    def next(self) -> None:
        """Go to the next row without a decision, behind this one first, then from the start."""
        count = len(self.desk.places)
        start = -1 if self.at is None else self.at
        for step in range(1, count + 1):
            place = (start + step) % count
            standing = self.desk.labels.standing(self.annotator, self._hash(place))
            if standing.decision is None and (self.skipped_too or not standing.skipped):
                self._go(place)
                return
        self.at = None

    def move(self, step: int) -> None:
        """Go to a neighbour, decided on or not; stops at the ends."""
        last = len(self.desk.places) - 1
        self._go(last if self.at is None else min(last, max(0, self.at + step)))

    def jump(self, number: int) -> None:
        """Go to a row by its number, from 1, in the order of this session.

        Raises:
            RecipeError: there is no such row.
        """
        if not 1 <= number <= len(self.desk.places):
            raise RecipeError(code="D294", message=f"rows are numbered 1 to {len(self.desk.places)}, got {number}")
        self._go(number - 1)

    # --- deciding -------------------------------------------------------------------------------------------------

    def act(
        self,
        action: Action,
        *,
        side: str | None = None,
        edits: Mapping[int, str] | None = None,
        text: str | None = None,
    ) -> Record:
        """Write one entry on the row that is shown, and go on if it is judged or skipped.

        Args:
            action: As in `Record`, `undo` excepted.
            side: `choose`: `left` or `right`, as shown.
            edits: Number of a text in `Shown.slots` -> new text.
            text: A tag, or a note (an empty note takes it away).

        Raises:
            RecipeError: the action does not fit the row, or a text is empty, too long, or no Unicode text.
            DataError: an edit of what is not there.
            EnvironmentProblem: the log cannot be written.
        """
        item = self.item
        if item is None:
            raise RecipeError(code="D294", message="no row is shown", hint="all rows are decided on; jump to one")
        view = self.view()
        assert view is not None
        changed = _changed(view, edits or {})
        _check(action, item, side, changed, text)
        apply_edits(item.conversation, changed)
        choice: Side | None = None
        if side is not None:
            other: Side = "second" if view.left == "first" else "first"
            choice = view.left if side == "left" else other
            if any(edit.answer != (0 if choice == "first" else 1) for edit in changed):
                raise RecipeError(code="D294", message="only the better answer is edited", hint="choose the edited one")
        record = self._write(
            action, item, choice=choice, left=view.left, edits=changed,
            text=text.strip() if text is not None else None,
            seconds=round(self.clock() - self._since, 3) if action in DECISIONS else None,
        )  # fmt: skip
        if action in DECISIONS or action == "skip":
            self.next()
        return record

    def undo(self) -> Record | None:
        """Take back the last entry of this annotator, and show its row again; None if there is none."""
        self.desk.labels.add(self.desk.log.refresh())
        last = self.desk.labels.last_of(self.annotator)
        if last is None:
            return None
        item = self.desk.items.first(last.hash)
        self.desk.labels.add(self.desk.log.append(_record(
            self.annotator, "undo", hash_=last.hash, file=last.file, line=last.line, undoes=last.id,
        )))  # fmt: skip
        if item is not None:
            place = next((at for at, index in enumerate(self.desk.places) if self.desk.items.all[index] is item), None)
            if place is not None:
                self._go(place)
        return last

    def _write(self, action: Action, item: Item, **keys: Any) -> Record:
        record = _record(self.annotator, action, hash_=item.hash, file=item.ref.file, line=item.ref.line, **keys)
        self.desk.labels.add(self.desk.log.append(record))
        return record

    def _go(self, place: int) -> None:
        self.at, self._since = place, self.clock()

    def _hash(self, place: int) -> str:
        return self.desk.items.all[self.desk.places[place]].hash

    def _left(self, item: Item) -> Side:
        """Which answer stands left: by a hash of seed, annotator and content, so half of them and always the same."""
        if not self.desk.blind or seeded(self.desk.seed, "left", self.annotator, item.hash) % 2 == 0:
            return "first"
        return "second"


def _record(annotator: str, action: Action, *, hash_: str, **keys: Any) -> Record:
    now = datetime.now(UTC)
    # Ids sort by time; the random end keeps two processes apart.
    name = f"{time.time_ns():016x}{secrets.token_hex(4)}"
    return Record(
        id=name, time=now.isoformat(timespec="microseconds"), annotator=annotator, action=action, hash=hash_, **keys
    )


def _changed(view: Shown, edits: Mapping[int, str]) -> tuple[Edit, ...]:
    """Texts that are no longer what they were."""
    changed = []
    for number, text in edits.items():
        if not 0 <= number < len(view.slots):
            raise DataError(code="D293", message=f"text {number} cannot be edited; the row has {len(view.slots)}")
        slot: Slot = view.slots[number]
        _check_text(text, MAX_EDIT)
        if text != slot.text:
            changed.append(Edit(slot.answer, slot.part, text))
    return tuple(changed)


def _check(action: Action, item: Item, side: str | None, edits: tuple[Edit, ...], text: str | None) -> None:
    allowed = {
        "single": ("accept", "reject", "edit", "skip", "tag", "untag", "note"),
        "pair": ("choose", "tie", "reject", "skip", "tag", "untag", "note"),
    }[item.kind]
    if action not in allowed:
        what = "two answers to rank" if item.kind == "pair" else "one row"
        raise RecipeError(code="D294", message=f"`{action}` does not fit {what}; it takes {', '.join(allowed)}")
    if (action == "choose") != (side in {"left", "right"}):
        raise RecipeError(code="D294", message=f"`choose` takes left or right, nothing else does; got {side}")
    if edits and action not in {"edit", "choose"}:
        raise RecipeError(code="D294", message=f"`{action}` takes no edited text")
    if action == "edit" and not edits:
        raise RecipeError(code="D294", message="nothing was changed", hint="accept the row as it is")
    if action == "accept" and item.empty:
        message = f"the row has nothing to train on ({item.empty})"
        raise RecipeError(code="D294", message=message, hint="write the answer (edit), or reject the row")
    if any(not edit.text.strip() for edit in edits):
        raise RecipeError(code="D294", message="an edited text is empty", hint="reject the row instead")
    if (action in {"tag", "untag", "note"}) != (text is not None):
        raise RecipeError(code="D294", message="tags and notes have a text, nothing else does")
    if text is not None:
        _check_text(text, MAX_TEXT)
        if action != "note" and not text.strip():
            raise RecipeError(code="D294", message="an empty tag")


def _check_text(text: str, limit: int) -> None:
    if not isinstance(text, str) or len(text) > limit:
        raise RecipeError(code="D294", message=f"a text of at most {limit:,} characters is needed")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise RecipeError(code="D294", message="the text has a NUL or half a surrogate pair, which JSON cannot keep")
