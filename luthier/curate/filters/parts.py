"""The texts of a row that filters read, and a row with edited texts.

What is judged: of a chat the answers that are trained (a weight of 0 makes an answer context) and what is asked; of
raw rows the completion, the weighted segments, the text. What is edited is everything a template could show: all texts
of all messages, tool calls and tools, never ids and roles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.curate.filters.edits import Editor, apply, edit_json_text, move_spans
from luthier.data.types import Conversation

__all__ = [
    "Part",
    "answers_of",
    "as_value",
    "edit_answers",
    "edit_row",
    "edit_value",
    "prompts_of",
    "said",
    "sides",
    "whole_prompt",
]

Answers = Literal["either", "chosen"]

_LEFT_ALONE = ("role", "type", "id", "tool_call_id", "weight")


@dataclass(frozen=True, slots=True)
class Part:
    """One text of a row."""

    where: str
    """`messages.2`, `completion`; of preferences with the side in front: `rejected messages.1`."""
    text: str


def sides(row: Conversation, answers: Answers = "either") -> list[tuple[str, Conversation]]:
    """The conversations of a row, each with the words that name it: one, or the answers of preferences."""
    if not row.answers:
        return [("", row)]
    if row.kind == "rated":
        return [("", row.answers[0])] if answers == "either" or row.label else []
    named = list(zip(("chosen ", "rejected "), row.answers, strict=True))
    return named if answers == "either" else named[:1]


def answers_of(row: Conversation, answers: Answers = "either") -> list[Part]:
    """What is trained, answer by answer; empty ones (tool calls alone) are left out."""
    found = [part for side, conversation in sides(row, answers) for part in _answers(side, conversation)]
    return [part for part in found if part.text.strip()]


def prompts_of(row: Conversation) -> list[Part]:
    """What a person asks: user messages; the prompt of raw rows. Once for preferences, which share it."""
    row = row.answers[0] if row.answers else row
    if row.kind == "chat":
        users = [(i, message) for i, message in enumerate(row.messages) if message["role"] == "user"]
        found = [Part(f"messages.{i}", said(message)) for i, message in users]
    elif row.kind == "segments":
        found = [Part(f"segments.{i}", piece.text) for i, piece in enumerate(row.segments) if not piece.weight]
    else:
        found = [Part("prompt", row.prompt)]
    return [part for part in found if part.text.strip()]


def whole_prompt(row: Conversation) -> tuple[str, str]:
    """(all before the last answer, the last answer) of one side; plain text is all answer."""
    if row.kind == "chat":
        places = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
        last = places[-1] if places else len(row.messages)
        before = "\n".join(said(message) for message in row.messages[:last])
        return before, said(row.messages[last]) if places else ""
    if row.kind == "segments":
        first = next((i for i, piece in enumerate(row.segments) if piece.weight), len(row.segments))
        texts = [piece.text for piece in row.segments]
        return "".join(texts[:first]), "".join(texts[first:])
    return row.prompt, row.completion or row.text


def said(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, of several parts their texts; without thoughts and calls."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content) if isinstance(content, list) else ""


def _answers(side: str, row: Conversation) -> list[Part]:
    if row.kind == "chat":
        weights = row.message_weights or (None,) * len(row.messages)
        told = zip(row.messages, weights, strict=True)
        places = [i for i, (message, weight) in enumerate(told) if message["role"] == "assistant" and weight != 0]
        return [Part(f"{side}messages.{i}", said(row.messages[i])) for i in places]
    if row.kind == "segments":
        return [Part(f"{side}segments.{i}", piece.text) for i, piece in enumerate(row.segments) if piece.weight]
    return [Part(f"{side}{row.kind}", row.text)] if row.kind == "text" else [Part(f"{side}completion", row.completion)]


def as_value(row: Conversation) -> dict[str, Any]:
    """A row as plain values, for functions of users and for judges: new objects, safe to change."""
    value: dict[str, Any] = {"kind": row.kind, "file": row.ref.file, "line": row.ref.line, "source": row.ref.source}
    if row.answers:
        names = ("chosen", "rejected") if row.kind == "pair" else ("answer",)
        value |= {name: _plain(answer) for name, answer in zip(names, row.answers, strict=True)}
        value |= {"margin": row.margin} if row.kind == "pair" else {"label": row.label}
        return value
    return value | _plain(row)


def _plain(row: Conversation) -> dict[str, Any]:
    if row.kind == "chat":
        tools = {"tools": row.tools} if row.tools else {}
        value: dict[str, Any] = {"messages": list(map(dict, row.messages)), **tools}
    elif row.kind == "segments":
        value = {"segments": [{"text": piece.text, "weight": piece.weight} for piece in row.segments]}
    elif row.kind == "text":
        value = {"text": row.text}
    else:
        value = {"prompt": row.prompt, "completion": row.completion}
    copied: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False))
    return copied


# -- edited rows


def edit_row(row: Conversation, editor: Editor) -> Conversation:
    """The row with every text edited; the same object if nothing changes."""
    if row.answers:
        answers = tuple(edit_row(answer, editor) for answer in row.answers)
        same = all(new is old for new, old in zip(answers, row.answers, strict=True))
        return row if same else replace(row, answers=answers)
    if row.kind == "chat":
        return _edit_chat(row, editor)
    if row.kind == "segments":
        texts = [apply(piece.text, editor(piece.text)) for piece in row.segments]
        if texts == [piece.text for piece in row.segments]:
            return row
        pieces = zip(row.segments, texts, strict=True)
        return replace(row, segments=tuple(replace(piece, text=text) for piece, text in pieces))
    texts = [apply(text, editor(text)) for text in (row.prompt, row.completion, row.text)]
    if texts == [row.prompt, row.completion, row.text]:
        return row
    return replace(row, prompt=texts[0], completion=texts[1], text=texts[2])


def edit_answers(row: Conversation, editor: Editor, answers: Answers = "either") -> Conversation:
    """The row with the text of its trained answers edited (chats and completions); nothing else."""
    if row.answers:
        looked_at = [conversation for _, conversation in sides(row, answers)]
        new = tuple(
            edit_answers(answer, editor) if any(answer is one for one in looked_at) else answer
            for answer in row.answers
        )
        return row if all(a is b for a, b in zip(new, row.answers, strict=True)) else replace(row, answers=new)
    if row.kind == "prompt_completion":
        edits = editor(row.completion)
        return replace(row, completion=apply(row.completion, edits)) if edits else row
    places = {int(part.where.rpartition(".")[2]) for part in _answers("", row)} if row.kind == "chat" else set()
    messages = list(row.messages)
    spans = dict(row.span_weights)
    for index in places:
        content = messages[index].get("content")
        if isinstance(content, str) and (edits := editor(content)):
            messages[index] = {**messages[index], "content": apply(content, edits)}
            if index in spans and not (spans := {**spans, index: move_spans(spans[index], edits)})[index]:
                del spans[index]
    if all(new is old for new, old in zip(messages, row.messages, strict=True)):
        return row
    return replace(row, messages=tuple(messages), span_weights=spans)


def _edit_chat(row: Conversation, editor: Editor) -> Conversation:
    messages = []
    spans = dict(row.span_weights)
    for index, message in enumerate(row.messages):
        edited = edit_value(dict(message) if not isinstance(message, dict) else message, editor)
        if index in spans and edited is not message:
            # Ranges stand only beside a content that is one string.
            moved = move_spans(spans[index], editor(message["content"]))
            spans[index] = moved
            if not moved:
                del spans[index]
        messages.append(edited)
    tools = edit_value(list(row.tools), editor) if row.tools else row.tools
    if all(new == old for new, old in zip(messages, row.messages, strict=True)) and tools == row.tools:
        return row
    return replace(row, messages=tuple(messages), span_weights=spans, tools=tools)


def edit_value(value: Any, editor: Editor, *, called: bool = False) -> Any:
    """A JSON value with its strings edited; the same object if nothing changes.

    `called`: the value is what a tool is called with. There keys are data, too, and a number in which something is
    found (a card number) becomes a string; a string that holds a JSON object stays valid JSON.
    """
    if isinstance(value, str):
        if called and (edited := edit_json_text(value, editor)) is not None:
            return edited if edited != value else value
        edits = editor(value)
        return apply(value, edits) if edits else value
    if isinstance(value, dict):
        new = {
            _edited_key(name, editor) if called else name: item
            if not called and name in _LEFT_ALONE and not isinstance(item, dict | list)
            else edit_value(item, editor, called=called or name == "arguments")
            for name, item in value.items()
        }
        same = list(new) == list(value) and all(new[name] is item for name, item in value.items())
        return value if same else new
    if isinstance(value, list):
        items = [edit_value(item, editor, called=called) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if called and isinstance(value, int | float) and not isinstance(value, bool):
        edits = editor(text := json.dumps(value))
        return apply(text, edits) if edits else value
    return value


def _edited_key(name: str, editor: Editor) -> str:
    return apply(name, editor(name))
