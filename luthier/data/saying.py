"""What a message says and where its content stands in a rendering: the text half of the mask proof."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.data.encode import Interval
from luthier.data.sandbox import TemplateFailure
from luthier.data.template import Rendering

__all__ = [
    "SENTINELS",
    "Unprovable",
    "add_note",
    "check_says_all",
    "common_length",
    "content_span",
    "find_content",
    "is_blank",
    "message_texts",
    "place_span",
]

# Two stand-ins for a content that differ in every character; no template should know them.
SENTINELS = ("\ue0a0\ue0a1\ue0a2\ue0a3", "\ue0b4\ue0b5\ue0b6\ue0b7")
_FIELDS = ("reasoning_content", "thinking", "reasoning", "content")


class Unprovable(Exception):
    """A turn cannot be proven to be what would be served; the text says which and why."""


def is_blank(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message says nothing: no text, no reasoning, no tool call."""
    return not message.get("tool_calls") and not any(text.strip() for _, text in message_texts(message))


def message_texts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and text of everything a message says, parts of a content list one by one."""
    for name in _FIELDS:
        value = message.get(name)
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, list | tuple):
            for part in value:
                if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                    yield name, part["text"]
                elif isinstance(part, str):
                    yield name, part


def check_says_all(message: Mapping[str, Any], body: str, index: int, notes: list[str]) -> None:
    """Everything in the message must be in the turn."""
    squeezed: str | None = None
    said = False
    for name, text in message_texts(message):
        said = said or bool(text)
        if text in body:
            continue
        if text.strip() in body:
            add_note(notes, "template trims whitespace")
            continue
        squeezed = "".join(body.split()) if squeezed is None else squeezed
        if "".join(text.split()) not in squeezed:
            raise Unprovable(
                f"message {index} (assistant): the template alters its `{name}`: {_first_missing(text, body)}"
            )
        add_note(notes, "template changes whitespace")
    for call in message.get("tool_calls") or ():
        _check_tool_call(call, body, index)
    plain = message.get("content") if isinstance(message.get("content"), str) else ""
    if said and not message.get("tool_calls") and body.strip() != (plain or "").strip():
        add_note(notes, "template adds text to the turn")


def _first_missing(text: str, body: str) -> str:
    """The first words of a text that are not in the turn."""
    for words in text.split():
        if words not in body:
            return f"{words[:60]!r} of {text[:60]!r} is not in the rendered turn {body[:80]!r}"
    return f"{text[:60]!r} is not in the rendered turn {body[:80]!r}"


def _check_tool_call(call: Any, body: str, index: int) -> None:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    leaves = [str(function.get("name", "")), *_leaves(function.get("arguments"))]
    for leaf in leaves:
        if (
            leaf not in body
            and json.dumps(leaf, ensure_ascii=False)[1:-1] not in body
            and json.dumps(leaf)[1:-1] not in body
        ):
            raise Unprovable(
                f"message {index} (assistant): {leaf[:60]!r} of its tool call is not in the rendered turn "
                f"{body[:80]!r}: the template does not support tool calls in this form"
            )


def _leaves(value: Any) -> Iterator[str]:
    """Texts of the values in tool arguments; a JSON string counts as its content."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict | list):
            yield from _leaves(parsed)
        else:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield json.dumps(value)


def add_note(notes: list[str], text: str) -> None:
    """Note something about a row, once."""
    if text not in notes:
        notes.append(text)


def find_content(rendering: Rendering, index: int, text: str, turn: Interval) -> Interval:
    """Place of the content inside a proven turn; the whole turn when it is not one plain text."""
    content = rendering.messages[index].get("content")
    body = text[slice(*turn)]
    if not isinstance(content, str) or body == content:
        return turn
    wanted = content if content in body else content.strip()
    if wanted and body.count(wanted) == 1:
        begin = turn[0] + body.index(wanted)
        return begin, begin + len(wanted)
    return turn


def content_span(rendering: Rendering, index: int, text: str) -> Interval:
    """Place of a message's content in the full rendering, by replacing it."""
    role = rendering.messages[index].get("role")
    content = rendering.messages[index].get("content")
    where = f"message {index} ({role})"
    if not isinstance(content, str):
        raise Unprovable(f"{where}: its place cannot be proven: its content is not one text")
    swapped = []
    for sentinel in SENTINELS:
        messages = [*rendering.messages]
        messages[index] = {**messages[index], "content": sentinel}
        try:
            swapped.append(Rendering(rendering.template, messages, rendering.tools).full)
        except TemplateFailure as failure:
            raise Unprovable(f"{where}: its place cannot be proven: {failure}") from failure
    before = common_length(*swapped)
    after = common_length(swapped[0][::-1], swapped[1][::-1])
    once = all(s == r[before : len(r) - after] and r.count(s) == 1 for s, r in zip(SENTINELS, swapped, strict=True))
    found = text[before : len(text) - after]
    same = text.startswith(swapped[0][:before]) and text.endswith(swapped[0][len(swapped[0]) - after :])
    if not once or not same or found not in (content, content.strip()) or before + after > len(text):
        raise Unprovable(f"{where}: its place cannot be proven: the template does not write its content as it is")
    return before, len(text) - after


def common_length(a: str, b: str) -> int:
    """Length of the common beginning."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def place_span(message: Mapping[str, Any], span: tuple[int, int], content: Interval, text: str, index: int) -> Interval:
    """Characters of the rendering for a range of the message's content; what is trimmed away falls out."""
    whole = message.get("content")
    shown = text[slice(*content)]
    if not isinstance(whole, str) or shown not in (whole, whole.strip()):
        raise Unprovable(
            f"message {index} ({message.get('role')}): its span weights cannot be placed in the rendered turn"
        )
    offset = content[0] - (len(whole) - len(whole.lstrip()) if shown != whole else 0)
    first, last = (min(max(offset + place, content[0]), content[1]) for place in span)
    return first, last
