"""Replace ranges of a text, and keep what points into it right: loss ranges, JSON inside strings.

An edit replaces `text[start:end]`. A character range of loss control keeps what it covered; a replacement has the
weight of the first character it stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

__all__ = ["Edit", "Editor", "apply", "difference", "edit_json_text", "move_spans"]

_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement."""

    start: int
    end: int
    new: str


Editor = Callable[[str], Sequence[Edit]]
"""Edits of a text, in order, none overlapping another."""


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with all replacements made."""
    pieces: list[str] = []
    place = 0
    for edit in edits:
        pieces += [text[place : edit.start], edit.new]
        place = edit.end
    return "".join([*pieces, text[place:]]) if edits else text


def move_spans(spans: Sequence[tuple[int, int, float]], edits: Sequence[Edit]) -> tuple[tuple[int, int, float], ...]:
    """Ranges of the old text as ranges of the new one; a range whose text is gone is left out."""
    moved = [(_moved(start, edits), _moved(end, edits), weight) for start, end, weight in spans]
    return tuple((start, end, weight) for start, end, weight in moved if end > start)


def _moved(place: int, edits: Sequence[Edit]) -> int:
    """A boundary inside a replaced range goes behind the replacement."""
    shift = 0
    for edit in edits:
        if place <= edit.start:
            break
        if place < edit.end:
            return edit.start + shift + len(edit.new)
        shift += len(edit.new) - (edit.end - edit.start)
    return place + shift


def difference(old: str, new: str) -> list[Edit]:
    """Edits that lead from one text to another, as small as `difflib` finds them."""
    if old == new:
        return []
    head = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    most = min(len(old), len(new)) - head
    tail = next((i for i in range(most) if old[-1 - i] != new[-1 - i]), most)
    middle, other = old[head : len(old) - tail], new[head : len(new) - tail]
    codes = SequenceMatcher(None, middle, other, autojunk=False).get_opcodes()
    return [Edit(head + i, head + j, other[k:m]) for tag, i, j, k, m in codes if tag != "equal"]


def edit_json_text(text: str, editor: Editor) -> str | None:
    """Edit the strings and numbers inside a JSON text, everything else byte for byte; None if it is no JSON.

    A number in which something is replaced becomes a string: the result is valid JSON.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list):
        return None
    return _LITERAL.sub(lambda found: _edited_literal(found[0], editor), text)


def _edited_literal(literal: str, editor: Editor) -> str:
    value: Any = json.loads(literal)
    plain = value if isinstance(value, str) else literal
    edits = editor(plain)
    if not edits:
        return literal
    # What was written as plain ASCII stays so.
    return json.dumps(apply(plain, edits), ensure_ascii=literal.isascii())
