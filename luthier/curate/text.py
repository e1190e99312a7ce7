"""What is compared of a row: its texts in parts, and the context that must be equal.

Two rows are as similar as the least similar of their parts. Compared as one text, a long prompt would hide a
short answer: `yes` and `no` to the same page would be 99% equal, and so would `A to B` and `B to A`.
System messages, tools and labels are context: rows that differ in it never are duplicates, and a long system
message that all rows share makes none of them similar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.data.types import Conversation
from luthier.runtime.errors import DataError, Problem

__all__ = ["Compared", "On", "refuse_without_prompt", "text_of"]

On = Literal["conversation", "prompt", "answer"]

_CONTEXT_ROLES = {"system", "developer"}
_SAID_KEYS = ("reasoning_content", "reasoning", "thinking", "refusal")
_CALL_KEYS = ("tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Compared:
    """The texts of a row, as they stand."""

    parts: tuple[tuple[str, ...], ...]
    """Texts that are compared part with part: what is asked and what is said; of a pair, each answer by itself.
    A part holds the texts of its messages in order."""
    context: tuple[str, ...]
    """Texts that must be equal."""
    turns: str = ""
    """Who speaks when, one letter a message; counts for exact duplicates only."""

    @property
    def length(self) -> int:
        """Characters of all parts."""
        return sum(len(text) for part in self.parts for text in part)


def text_of(row: Conversation, on: On = "conversation") -> Compared:
    """The texts of a row that are compared.

    conversation: what is asked (user and tool messages) and what is said (assistant messages) are the parts.
    prompt: only what stands before the last answer.
    answer: only the last answer; context does not count, but the label of a rated answer does.
    Of a pair the prompt and both answers are parts, in this order: a swapped pair is no duplicate.
    """
    if row.answers:
        return _preference(row, on)
    if row.kind == "chat":
        return _chat(row, on)
    if row.kind == "text":
        return Compared(((row.text,),), ("text",))
    if row.kind == "segments":
        prompt = tuple(piece.text for piece in row.segments if not piece.weight)
        answer = tuple(piece.text for piece in row.segments if piece.weight)
        return _sides(prompt, answer, ("segments",), on)
    return _sides((row.prompt,), (row.completion,), ("prompt_completion",), on)


def refuse_without_prompt(rows: Sequence[Conversation], on: On) -> None:
    """Plain text has neither a prompt nor an answer.

    Raises:
        DataError: `on` asks for one of them, and there is plain text.
    """
    bad = [row for row in rows if row.kind == "text"] if on != "conversation" else []
    if bad:
        first = bad[0].ref
        message = f"`dedup` compares the {on} of a row, but {len(bad):,} rows are plain text without one"
        hint = "compare whole rows: on: conversation"
        raise DataError(problems=[Problem(code="D230", message=message, file=first.file, line=first.line, hint=hint)])


def _sides(prompt: tuple[str, ...], answer: tuple[str, ...], context: tuple[str, ...], on: On) -> Compared:
    if on == "conversation":
        return Compared((prompt, answer), context)
    return Compared((prompt if on == "prompt" else answer,), context)


def _chat(row: Conversation, on: On) -> Compared:
    last = _last_answer(row)
    if on == "answer":
        return Compared(((_said(row.messages[last]),) if last is not None else (),), ("chat",))
    messages = row.messages[:last] if on == "prompt" and last is not None else row.messages
    asked: list[str] = []
    said: list[str] = []
    turns: list[str] = []
    context = ["chat"]
    for message in messages:
        role = message["role"]
        if role in _CONTEXT_ROLES:
            context.append(_said(message))
            continue
        (said if role == "assistant" else asked).append(_said(message))
        turns.append(role[0])
    if row.tools:
        context.append(_json(row.tools))
    return Compared((tuple(asked), tuple(said)), tuple(context), "".join(turns))


def _preference(row: Conversation, on: On) -> Compared:
    """Rows of preferences: each of `answers` is a whole conversation; they share their beginning."""
    prompt = text_of(row.answers[0], "prompt")
    finals = tuple(part for answer in row.answers for part in text_of(answer, "answer").parts)
    label: tuple[str, ...] = (row.kind, str(row.label))
    if on == "answer":
        return Compared(finals, label)
    context = (*label, *prompt.context)
    return Compared(prompt.parts if on == "prompt" else (*prompt.parts, *finals), context, prompt.turns)


def _last_answer(row: Conversation) -> int | None:
    places = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
    return places[-1] if places else None


def _said(message: Mapping[str, Any]) -> str:
    """All that a message says: text, thoughts, calls."""
    if len(message) == 2 and isinstance(message.get("content"), str):  # a role and a text, as most are
        return str(message["content"])
    pieces = [message[key] for key in _SAID_KEYS if message.get(key)]
    content = message.get("content")
    if isinstance(content, str):
        pieces.append(content)
    elif content:
        pieces += [item["text"] if _is_text(item) else _json(item) for item in content]
    pieces += [_json(message[key]) for key in _CALL_KEYS if message.get(key)]
    return "\n".join(pieces)


def _is_text(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("type") == "text" and isinstance(item.get("text"), str)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
