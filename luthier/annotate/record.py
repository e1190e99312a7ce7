"""One line of the log: who decided what about which row, and when."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from luthier.annotate.edits import Edit
from luthier.data.rows import show_value

__all__ = ["ACTIONS", "DECISIONS", "MAX_NAME", "MAX_TEXT", "Action", "Record", "Side", "record_from", "record_line"]

Action = Literal["accept", "reject", "edit", "choose", "tie", "skip", "tag", "untag", "note", "undo"]
Side = Literal["first", "second"]
"""Of a pair, in the order of the file: the chosen, the rejected answer."""
ACTIONS = get_args(Action)
DECISIONS = ("accept", "reject", "edit", "choose", "tie")
"""Actions after which a row is judged."""
MAX_NAME = 60
"""Most characters in the name of an annotator."""
MAX_TEXT = 10_000
"""Most characters in a tag or a note."""
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry. The last decision of an annotator on a content stands; `undo` takes one entry back."""

    id: str
    time: str
    """UTC, ISO 8601."""
    annotator: str
    action: Action
    hash: str
    """Content of the row (`Item.hash`)."""
    file: str
    line: int
    choice: Side | None = None
    """`choose`: the better answer."""
    left: Side | None = None
    """The answer that stood left (or on top)."""
    edits: tuple[Edit, ...] = ()
    text: str | None = None
    """The tag, or the note."""
    undoes: str | None = None
    """`undo`: id of the entry taken back."""
    seconds: float | None = None
    """From showing the row to the decision."""


def record_line(record: Record) -> bytes:
    """The line of a record; keys without a value are left out."""
    value: dict[str, Any] = {"v": VERSION}
    for field in fields(record):
        own = getattr(record, field.name)
        if field.name == "edits":
            own = [{"answer": edit.answer, "part": edit.part, "text": edit.text} for edit in own]
        if own is not None and own != []:
            value[field.name] = own
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def record_from(value: Any) -> Record:
    """A record of its JSON value.

    Raises:
        ValueError: it is none; says why.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, got {show_value(value)}")
    known = {field.name for field in fields(Record)}
    unknown = [key for key in value if key not in known | {"v"}]
    if value.get("v") != VERSION or unknown:
        what = f"unknown {', '.join(unknown)}" if unknown else f"version {show_value(value.get('v'))}"
        raise ValueError(f"{what}: no entry of a log of labels as this version writes it")
    for key in ("id", "time", "annotator", "action", "hash", "file"):
        if not isinstance(value.get(key), str) or not value[key]:
            raise ValueError(f"`{key}`: expected text, got {show_value(value.get(key))}")
    if value["action"] not in ACTIONS:
        raise ValueError(f"unknown action {show_value(value['action'])}")
    line, seconds = value.get("line"), value.get("seconds")
    if not isinstance(line, int) or isinstance(line, bool):
        raise ValueError(f"`line`: expected a number, got {show_value(line)}")
    if seconds is not None and not (isinstance(seconds, int | float) and math.isfinite(seconds)):
        raise ValueError(f"`seconds`: expected a number, got {show_value(seconds)}")
    for key in ("choice", "left"):
        if value.get(key) not in (None, "first", "second"):
            raise ValueError(f"`{key}`: expected first or second, got {show_value(value[key])}")
    own = {key: item for key, item in value.items() if key not in {"v", "edits"}}
    return Record(**own, edits=tuple(_edit(item) for item in value.get("edits", ())))


def _edit(value: Any) -> Edit:
    if isinstance(value, Mapping) and set(value) == {"answer", "part", "text"}:
        answer, part, text = value["answer"], value["part"], value["text"]
        if isinstance(answer, int) and isinstance(part, int) and isinstance(text, str):
            return Edit(answer, part, text)
    raise ValueError(f"`edits`: expected answer, part and text, got {show_value(value)}")
