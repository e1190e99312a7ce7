"""Which texts of a row can be edited, and the row with other texts in their place.

A text is named by its place in the normal form, not in the file, so an edit survives a change of format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.data.types import Conversation, Segment
from luthier.runtime.errors import DataError, Problem

__all__ = ["Edit", "Slot", "apply_edits", "prompt_length", "slots_of"]

WHOLE = -1
"""Part of a row that is one text: a completion, or plain text."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A text that may be edited."""

    answer: int
    """0; of a pair 0 or 1, in the order of the file: chosen, rejected."""
    part: int
    """Index of the message or segment; -1 where the row is one text."""
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """What stands in a slot instead."""

    answer: int
    part: int
    text: str


def slots_of(conversation: Conversation) -> list[Slot]:
    """The texts of the assistant, in order; of a pair what follows the shared prompt; of raw text all that is trained.

    Not there: content that is no single string, and messages with weights for parts of them (`spans`), which another
    text would shift.
    """
    if conversation.kind == "pair":
        start = prompt_length(conversation)
        return [
            Slot(side, slot.part, slot.text)
            for side, answer in enumerate(conversation.answers)
            for slot in slots_of(answer)
            if slot.part == WHOLE or slot.part >= start
        ]
    if conversation.kind == "rated":
        return slots_of(conversation.answers[0])
    if conversation.kind == "prompt_completion":
        return [Slot(0, WHOLE, conversation.completion)]
    if conversation.kind == "text":
        return [Slot(0, WHOLE, conversation.text)]
    if conversation.kind == "segments":
        return [Slot(0, place, piece.text) for place, piece in enumerate(conversation.segments) if piece.weight]
    return [
        Slot(0, place, message["content"])
        for place, message in enumerate(conversation.messages)
        if message["role"] == "assistant"
        and isinstance(message.get("content"), str)
        and not conversation.span_weights.get(place)
    ]


def prompt_length(pair: Conversation) -> int:
    """Messages that both answers of a pair share and that do not count (0 of raw text)."""
    first, second = pair.answers
    length = 0
    for left, right, own, theirs in zip(
        first.messages, second.messages, first.message_weights, second.message_weights, strict=False
    ):
        if left != right or own != 0.0 or theirs != 0.0:
            break
        length += 1
    return length


def apply_edits(conversation: Conversation, edits: Iterable[Edit]) -> Conversation:
    """The row with other texts.

    Raises:
        DataError: the row has no such text.
    """
    places = {(slot.answer, slot.part) for slot in slots_of(conversation)}
    for edit in edits:
        if (edit.answer, edit.part) not in places:
            message = f"an edit of answer {edit.answer}, part {edit.part}, which this row does not have"
            ref = conversation.ref
            raise DataError(problems=[Problem(code="D293", message=message, file=ref.file, line=ref.line)])
        conversation = _with(conversation, edit)
    return conversation


def _with(conversation: Conversation, edit: Edit) -> Conversation:
    if conversation.answers:
        answers = list(conversation.answers)
        answers[edit.answer] = _with(answers[edit.answer], replace(edit, answer=0))
        return replace(conversation, answers=tuple(answers))
    if conversation.kind == "prompt_completion":
        return replace(conversation, completion=edit.text)
    if conversation.kind == "text":
        return replace(conversation, text=edit.text)
    if conversation.kind == "segments":
        pieces = list(conversation.segments)
        pieces[edit.part] = Segment(edit.text, pieces[edit.part].weight)
        return replace(conversation, segments=tuple(pieces))
    return replace(conversation, messages=_messages(conversation.messages, edit))


def _messages(messages: Sequence[Any], edit: Edit) -> tuple[Any, ...]:
    return tuple(
        {**message, "content": edit.text} if place == edit.part else message for place, message in enumerate(messages)
    )
