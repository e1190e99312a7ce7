"""A row in any of the known formats -> `Conversation`, the one normal form.

One function a format, found in `_READERS`. They check everything, coerce nothing, and tell
apart what is wrong (a fault) from what is well-formed but has nothing to train on (empty).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.layout import Layout
from luthier.data.messages import Findings, Messages, Path, is_blank, is_weight, read_messages, read_tools
from luthier.data.rows import Row, row_problem, show_value
from luthier.data.strict_json import JsonError, locate, parse
from luthier.data.types import Conversation, RowRef, Segment
from luthier.runtime.errors import Problem

__all__ = ["SHAREGPT_ROLES", "Empty", "normalise", "path_text"]

SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Whom ShareGPT's `from` means."""


@dataclass(frozen=True, slots=True)
class Empty:
    """A well-formed row with nothing to train on."""

    ref: RowRef
    detail: str
    problem: Problem


def normalise(
    row: Row, layout: Layout, *, system: str | None = None, loss_on: str = "assistant"
) -> Conversation | Empty | list[Problem]:
    """Read one row.

    Args:
        row: Row of a file.
        layout: Format, and which column is what.
        system: Put in front of chat rows that have no system message.
        loss_on: As in the recipe; decides which turns must not be empty.

    Returns:
        The conversation; or `Empty`; or everything that is wrong with the row.
    """
    findings = Findings()
    conversation = _READERS[layout.format](_Fields(row, layout, findings), system, loss_on)
    if findings.faults:
        return [_problem(row, path, message, code) for path, message, code in findings.faults]
    if findings.empty:
        path, message = findings.empty
        detail = f"{path_text(path)}: {message}" if path else message
        hint = "`data.on_empty: drop` leaves such rows out, counted"
        return Empty(row.ref, detail, _problem(row, path, message, "D201", hint=hint))
    return conversation


def path_text(path: Path) -> str:
    """`("messages", 1, "content")` as `messages[1].content`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _problem(row: Row, path: Path, message: str, code: str, *, hint: str | None = None) -> Problem:
    offset = locate(row.text, path) if row.text is not None else None
    place = f"{path_text(path)}: " if path else ""
    column = None if offset is None else offset + 1
    return row_problem(code, place + message, row.ref, text=row.text, column=column, hint=hint)


class _Fields:
    """The columns of one row under the names of its format."""

    def __init__(self, row: Row, layout: Layout, findings: Findings) -> None:
        self.row, self.layout, self.findings = row, layout, findings

    def path(self, name: str) -> Path:
        return self.layout.path_in(self.row.value, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Value of a column that may be missing."""
        value: Any = self.row.value
        for step in self.path(name):
            if not isinstance(value, dict) or step not in value:
                return default
            value = value[step]
        return value

    def has(self, name: str) -> bool:
        missing = object()
        return self.get(name, missing) is not missing

    def required(self, name: str) -> Any:
        """Value of a column that must be there; None after recording that it is not."""
        if not self.has(name):
            there = ", ".join(self.row.value) or "none"
            column = self.layout.column(name)
            self.findings.add((), f"no column `{column}`; the row has: {there}", code="D209")
            return None
        return self.get(name)

    def text(self, name: str, *, required: bool = True) -> str:
        """A column that must hold a string; an optional one may be missing or null."""
        value = self.required(name) if required else self.get(name)
        if isinstance(value, str):
            return value
        if value is not None or (required and self.has(name)):
            self.findings.wrong(self.path(name), "string", value)
        return ""


def _chat(fields: _Fields, found: Messages, system: str | None, loss_on: str, *, at: Path) -> Conversation:
    """Finish a chat row: system message, tools, and whether there is anything to train on."""
    if not fields.findings.faults:
        _check_trainable(found, at, fields.findings, loss_on)
    own = fields.text("system", required=False) if fields.layout.has_field("system") else ""
    if own and found.has_system():
        fields.findings.add(fields.path("system"), "the row has a system message already")
    elif own:
        found.prepend_system(own)
    if system is not None and not fields.findings.faults and not found.has_system():
        found.prepend_system(system)
    return Conversation(
        kind="chat",
        ref=fields.row.ref,
        messages=tuple(found.messages),
        tools=_tools(fields),
        message_weights=tuple(found.weights),
        span_weights=found.spans,
    )


def _tools(fields: _Fields) -> Sequence[Mapping[str, Any]] | None:
    """`tools`; or the older `functions`, wrapped as OpenAI wraps them."""
    tools = read_tools(fields.get("tools"), fields.path("tools"), fields.findings)
    functions = read_tools(fields.get("functions"), fields.path("functions"), fields.findings)
    if tools is not None and functions is not None:
        fields.findings.add((), "`tools` and `functions` say the same thing: keep one")
    return tools if functions is None else [{"type": "function", "function": function} for function in functions]


def _check_trainable(found: Messages, at: Path, findings: Findings, loss_on: str) -> None:
    """Record why nothing of the row would be trained, or an answer that is blank and would be."""
    if not found.messages:
        findings.nothing_to_train(at, "no messages")
        return
    answers = [index for index, message in enumerate(found.messages) if message["role"] == "assistant"]
    trained = [index for index, weight in enumerate(found.weights) if weight]
    spanned = [index for index, spans in found.spans.items() if any(weight for _, _, weight in spans)]
    if loss_on == "all":
        candidates = list(range(len(found.messages)))
    else:
        candidates = answers[-1:] if loss_on == "last_assistant" else answers
        if not answers and not trained and not spanned:
            findings.nothing_to_train(at, "no assistant message")
            return
    chosen = sorted({index for index in candidates if found.weights[index] is None} | set(trained) | set(spanned))
    if not chosen:
        findings.nothing_to_train(at, "every message has weight 0")
    for index in chosen:
        if is_blank(found.messages[index]) and index in answers:
            findings.nothing_to_train((*at, index, "content"), "empty answer")
    if chosen and all(is_blank(found.messages[index]) for index in chosen):
        findings.nothing_to_train(at, "nothing but white space")


def _messages(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    path = fields.path("messages")
    value = fields.required("messages")
    found = read_messages(value, path, fields.findings) if fields.has("messages") else Messages()
    return _chat(fields, found, system, loss_on, at=path)


def _columns(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    """`map: {user: question, assistant: answer}`: one message a column, in conversation order."""
    found = Messages()
    at: Path = ()
    for role in ("system", "developer", "user", "assistant"):
        if role in fields.layout.map:
            text = fields.text(role, required=role != "system")
            if role == "assistant":
                at = fields.path(role)
                if not text.strip() and not fields.findings.faults:
                    fields.findings.nothing_to_train(at, "empty answer")
            if text or role != "system":
                found.messages.append({"role": role, "content": text})
                found.weights.append(None)
    if not fields.findings.faults and not fields.findings.empty:
        _check_trainable(found, at, fields.findings, loss_on)
    if system is not None and not found.has_system():
        found.prepend_system(system)
    return Conversation(
        kind="chat",
        ref=fields.row.ref,
        messages=tuple(found.messages),
        tools=_tools(fields),
        message_weights=tuple(found.weights),
    )


def _sharegpt(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    path = fields.path("conversations")
    value = fields.required("conversations")
    if isinstance(value, list):
        value = [_sharegpt_turn(turn, (*path, index), fields.findings) for index, turn in enumerate(value)]
    found = read_messages(value, path, fields.findings) if fields.has("conversations") else Messages()
    return _chat(fields, found, system, loss_on, at=path)


def _sharegpt_turn(turn: Any, at: Path, findings: Findings) -> Any:
    """One `{from, value}` (or `{role, content}`) turn as an OpenAI message; other keys stay."""
    if not isinstance(turn, dict):
        return turn
    if ("from" in turn and "role" in turn) or ("value" in turn and "content" in turn):
        findings.add(at, "a turn has `from` and `value`, or `role` and `content`, not both")
        return turn
    who_key = "from" if "from" in turn else "role"
    what_key = "value" if "value" in turn else "content"
    who = turn.get(who_key)
    if not isinstance(who, str) or who not in SHAREGPT_ROLES:
        if isinstance(who, str):
            listed = ", ".join(SHAREGPT_ROLES)
            findings.add((*at, who_key), f"unknown role {show_value(who)}; roles are: {listed}", code="D208")
        elif who_key in turn:
            findings.wrong((*at, who_key), "string", who)
        else:
            findings.add(at, f"no `from`; its keys are: {', '.join(turn) or 'none'}")
        return {"role": "user", "content": ""}
    what = turn.get(what_key)
    if what_key not in turn or (not isinstance(what, str) and what_key == "value"):
        findings.wrong((*at, what_key), "string", what)
        return {"role": "user", "content": ""}
    rest = {key: item for key, item in turn.items() if key not in {who_key, what_key}}
    if who == "function_call":
        calls = _function_calls(what, (*at, what_key), findings)
        return {"role": "assistant", "content": "", "tool_calls": calls, **rest}
    return {"role": SHAREGPT_ROLES[who], "content": what, **rest}


def _function_calls(text: Any, at: Path, findings: Findings) -> list[dict[str, Any]]:
    """`{"name": ..., "arguments": ...}` (or a list of them) in a string, as tool calls; arguments as they are."""
    try:
        value = parse(text) if isinstance(text, str) else text
    except JsonError as fault:
        findings.add(at, f'a function call is JSON {{"name", "arguments"}}: {fault.message}')
        return []
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or "name" not in call or "arguments" not in call:
            findings.add(at, f'a function call is JSON {{"name", "arguments"}}, got {show_value(call)}')
            return []
    return [{"type": "function", "function": call} for call in calls]


def _alpaca(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    """Question = instruction, then (on a new line) input when it is not empty, as LLaMA-Factory joins them."""
    found = Messages()
    history = fields.get("history")
    if history is not None and not isinstance(history, list):
        fields.findings.wrong(fields.path("history"), "a list of [question, answer] pairs", history)
        history = None
    turns: list[dict[str, Any]] = []
    for index, pair in enumerate(history or []):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            fields.findings.wrong((*fields.path("history"), index), "two strings, [question, answer]", pair)
            continue
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    parts = [fields.text("instruction"), fields.text("input", required=False)]
    question = "\n".join(part for part in parts if part)
    if not question.strip() and not fields.findings.faults:
        fields.findings.add(fields.path("instruction"), "empty instruction and no input")
    answer = fields.text("output")
    if not answer.strip():
        fields.findings.nothing_to_train(fields.path("output"), "empty answer")
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    found.messages, found.weights = turns, [None] * len(turns)
    return _chat(fields, found, system, loss_on, at=fields.path("history") if history else ())


def _prompt_completion(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    """Two strings are raw text, as in TRL. Two lists of messages are a chat whose prompt is context only."""
    prompt, completion = fields.required("prompt"), fields.required("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        found = read_messages(prompt, fields.path("prompt"), fields.findings)
        found.weights = [0.0 if weight is None else weight for weight in found.weights]
        answer = read_messages(completion, fields.path("completion"), fields.findings)
        if not fields.findings.faults:
            _check_trainable(answer, fields.path("completion"), fields.findings, loss_on)
        found.extend(answer)
        return _chat(fields, found, system, loss_on, at=())
    if isinstance(prompt, list) != isinstance(completion, list) and fields.has("prompt") and fields.has("completion"):
        fields.findings.add((), "`prompt` and `completion` must be both strings or both lists of messages")
    texts = {}
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, (str, list)) and fields.has(name):
            fields.findings.wrong(fields.path(name), "string", value)
        texts[name] = value if isinstance(value, str) else ""
    if not texts["completion"].strip():
        fields.findings.nothing_to_train(fields.path("completion"), "empty completion")
    _refuse_system(fields, system)
    return Conversation(
        kind="prompt_completion", ref=fields.row.ref, prompt=texts["prompt"], completion=texts["completion"]
    )


def _text(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    text = fields.text("text")
    if not text.strip():
        fields.findings.nothing_to_train(fields.path("text"), "empty text")
    _refuse_system(fields, system)
    return Conversation(kind="text", ref=fields.row.ref, text=text)


def _segments(fields: _Fields, system: str | None, loss_on: str) -> Conversation:
    """Axolotl's `input_output`: `[{"label": true, "text": ...}]`; `weight` may stand for `label`."""
    value, path = fields.required("segments"), fields.path("segments")
    segments: list[Segment] = []
    if fields.has("segments") and not isinstance(value, list):
        fields.findings.wrong(path, "a list of segments", value)
    for index, item in enumerate(value if isinstance(value, list) else []):
        at = (*path, index)
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            fields.findings.wrong(at, "an object with label and text", item)
            continue
        label, weight = item.get("label"), item.get("weight")
        if (label is None) == (weight is None):
            fields.findings.add(at, "a segment has either `label` (true or false) or `weight` (a number >= 0)")
        elif label is not None and not isinstance(label, bool):
            fields.findings.wrong((*at, "label"), "true or false", label)
        elif weight is not None and not is_weight(weight):
            fields.findings.wrong((*at, "weight"), "a number >= 0", weight)
        else:
            segments.append(Segment(item["text"], float(label is True) if weight is None else float(weight)))
    if not any(segment.weight and segment.text.strip() for segment in segments):
        fields.findings.nothing_to_train(path, "no segment with text is trained")
    _refuse_system(fields, system)
    return Conversation(kind="segments", ref=fields.row.ref, segments=tuple(segments))


def _refuse_system(fields: _Fields, system: str | None) -> None:
    if system is not None:
        fields.findings.add((), "`system` is for chat rows; this row is raw text", code="D209")


_READERS: Mapping[str, Callable[[_Fields, str | None, str], Conversation]] = {
    "messages": _messages,
    "columns": _columns,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _text,
    "segments": _segments,
}
