"""A changed row written back into the JSON text it came from.

The row was changed in normal form. Each text that is otherwise there is replaced where it stands in the JSON text of
the row: a whole string, a piece of a text that was joined from several columns, a string inside JSON inside a string.
All other characters of the row stay. A row with loss ranges is written anew as a whole, for they move with the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.curate.filters.edits import Edit, apply, difference, edit_json_text, move_spans
from luthier.curate.filters.parts import as_value
from luthier.data.types import Conversation

__all__ = ["changed_texts", "rewrite"]

_PLACEHOLDER = re.compile(r"[][A-Z0-9_]*")
"""What old and new text can have in common inside a placeholder."""


def changed_texts(old: Conversation, new: Conversation) -> dict[str, str]:
    """Old text -> new text, of all strings (and numbers that became strings) that differ between two normal forms."""
    found: dict[str, str] = {}

    def walk(before: Any, after: Any) -> None:
        if isinstance(before, dict):
            for (key, item), (name, other) in zip(before.items(), after.items(), strict=True):
                walk(key, name)
                walk(item, other)
        elif isinstance(before, list):
            for item, other in zip(before, after, strict=True):
                walk(item, other)
        elif before != after:
            found[before if isinstance(before, str) else json.dumps(before)] = after

    walk(as_value(old), as_value(new))
    return found


def rewrite(text: str, old: Conversation, new: Conversation) -> str:
    """The JSON text of a row with the changes of its normal form made in it.

    Args:
        text: One JSON object; white space around it stays.
        old: The row in normal form, as read.
        new: The row with changed texts, and nothing else changed.
    """
    texts = changed_texts(old, new)

    def editor(literal: str) -> Sequence[Edit]:
        return _edits(literal, texts)

    if any(row.span_weights for row in (old, *old.answers)):
        stripped = text.rstrip()
        return json.dumps(_moved(json.loads(stripped), editor), ensure_ascii=False) + text[len(stripped) :]
    edited = edit_json_text(text, editor)
    assert edited is not None, "the row was read before"
    return edited


def _edits(literal: str, texts: Mapping[str, str]) -> Sequence[Edit]:
    if literal in texts:
        return [Edit(0, len(literal), texts[literal])]
    for old, new in texts.items():
        place = old.find(literal) if literal else -1
        if place >= 0:
            inside = [
                Edit(edit.start - place, edit.end - place, edit.new)
                for edit in _whole(old, new)
                if place <= edit.start < place + len(literal) and edit.end <= place + len(literal)
            ]
            if inside:
                return inside
    if literal[:1] in ("{", "["):
        nested = edit_json_text(literal, lambda inner: _edits(inner, texts))
        if nested is not None and nested != literal:
            return [Edit(0, len(literal), nested)]
    return []


def _whole(old: str, new: str) -> list[Edit]:
    """As `difference`, but a placeholder is never pieced together: `user1@b.com` -> `[EMAIL_1]` share the 1.

    So a text is edited only if all that is replaced stands in it, and the role `user` is left alone.
    """
    edits: list[Edit] = []
    for edit in difference(old, new):
        last = edits[-1] if edits else None
        if last and _PLACEHOLDER.fullmatch(gap := old[last.end : edit.start]):
            edits[-1] = Edit(last.start, edit.end, last.new + gap + edit.new)
        else:
            edits.append(edit)
    return edits


def _moved(value: Any, editor: Any) -> Any:
    """A JSON value with edited strings, and loss ranges beside a `content` moved with it."""
    if isinstance(value, str):
        edits = editor(value)
        return apply(value, edits)
    if isinstance(value, list):
        return [_moved(item, editor) for item in value]
    if not isinstance(value, dict):
        return value
    new = {key: _moved(item, editor) for key, item in value.items()}
    content = value.get("content")
    if isinstance(content, str) and new["content"] != content:
        edits = difference(content, new["content"])
        if value.get("spans"):
            ranges = [(item["start"], item["end"], item["weight"]) for item in value["spans"]]
            new["spans"] = [{"start": a, "end": b, "weight": w} for a, b, w in move_spans(ranges, edits)]
        if value.get("train_detail"):
            ranges = [(item["begin_offset"], item["end_offset"] + 1, item["train"]) for item in value["train_detail"]]
            moved = move_spans(ranges, edits)
            new["train_detail"] = [{"begin_offset": a, "end_offset": b - 1, "train": w} for a, b, w in moved]
    return new
