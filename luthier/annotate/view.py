"""What a screen shows of a row: plain texts. Of a blind pair nothing tells which answer the file calls chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from luthier.annotate.edits import Slot, prompt_length, slots_of
from luthier.annotate.items import Item
from luthier.annotate.record import Side
from luthier.data.types import Conversation

__all__ = ["Block", "Shown", "shown"]

_AS_TEXT = ("reasoning_content", "reasoning", "thinking", "refusal")
_NO_EXTRA = {"role", "content", "name", *_AS_TEXT}


@dataclass(frozen=True, slots=True)
class Block:
    """One message, or piece of raw text."""

    role: str
    text: str
    notes: tuple[tuple[str, str], ...] = ()
    """What else the message has: (name, text); tool calls as JSON."""
    slot: int | None = None
    """Number of the editable text in `Shown.slots`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A row on a screen."""

    kind: str
    """`single` or `pair`."""
    blocks: tuple[Block, ...]
    """The row; of a pair the prompt that both answers share."""
    answers: tuple[tuple[Block, ...], ...] = ()
    """Of a pair: left and right, as they are shown."""
    left: Side | None = None
    """Of a pair: which answer of the file stands left."""
    slots: tuple[Slot, ...] = ()
    tools: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    """Other columns of the row."""
    label: bool | None = None
    """Of a rated answer."""

    def to_json(self) -> dict[str, Any]:
        """For the page; not which answer stands left."""
        return {
            "kind": self.kind,
            "blocks": [asdict(block) for block in self.blocks],
            "answers": [[asdict(block) for block in answer] for answer in self.answers],
            "slots": [slot.text for slot in self.slots],
            "tools": self.tools,
            "columns": self.columns,
            "label": self.label,
        }


def shown(item: Item, *, left: Side = "first", blind: bool = True) -> Shown:
    """The row as blocks of text.

    Args:
        item: The row.
        left: Of a pair: which answer stands left.
        blind: Leave out the other columns of a pair, which may tell which answer is which.
    """
    row = item.conversation
    slots = slots_of(row)
    if row.kind != "pair":
        chat = row.answers[0] if row.kind == "rated" else row
        places = {slot.part: number for number, slot in enumerate(slots)}
        return Shown(kind="single", blocks=tuple(_blocks(chat, places)), slots=tuple(slots), tools=_tools(chat),
                     columns=_columns(item), label=row.label)  # fmt: skip
    order = (0, 1) if left == "first" else (1, 0)
    slots = [slot for side in order for slot in slots if slot.answer == side]
    length = prompt_length(row)
    answers = []
    for side in order:
        places = {slot.part: number for number, slot in enumerate(slots) if slot.answer == side}
        blocks = _blocks(row.answers[side], places)
        answers.append(tuple(blocks[length:] if row.answers[side].kind == "chat" else blocks[1:]))
    first = row.answers[0]
    prompt = _blocks(first, {})
    return Shown(
        kind="pair",
        blocks=tuple(prompt[:length] if first.kind == "chat" else prompt[:1]),
        answers=tuple(answers),
        left=left,
        slots=tuple(slots),
        tools=_tools(first),
        columns=() if blind else _columns(item),
    )


def _blocks(row: Conversation, places: Mapping[int, int]) -> list[Block]:
    if row.kind == "prompt_completion":
        return [Block("prompt", row.prompt), Block("completion", row.completion, slot=places.get(-1))]
    if row.kind == "text":
        return [Block("text", row.text, slot=places.get(-1))]
    if row.kind == "segments":
        return [
            Block("trained" if piece.weight else "context", piece.text, slot=places.get(place))
            for place, piece in enumerate(row.segments)
        ]
    return [
        _block(message, row.message_weights[place], places.get(place)) for place, message in enumerate(row.messages)
    ]


def _block(message: Mapping[str, Any], weight: float | None, slot: int | None) -> Block:
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content)
    notes = [(key, str(message[key])) for key in _AS_TEXT if message.get(key)]
    notes += [("name", str(message["name"]))] if message.get("name") else []
    notes += [
        (key, item if isinstance(item, str) else _json(item))
        for key, item in message.items()
        if key not in _NO_EXTRA and item is not None
    ]
    if weight is not None and message["role"] == "assistant":
        notes.append(("weight", f"{weight:g}"))
    return Block(str(message["role"]), content or "", tuple(notes), slot)


def _columns(item: Item) -> tuple[tuple[str, str], ...]:
    value = item.row.value
    return tuple((name, own if isinstance(own := value[name], str) else _json(own)) for name in item.others)


def _tools(row: Conversation) -> str | None:
    return _json(list(row.tools)) if row.tools else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
