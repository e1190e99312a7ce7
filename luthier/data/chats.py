"""Rows that are chats: OpenAI messages, ShareGPT, Alpaca, and columns mapped to roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.fields import Fields
from luthier.data.messages import Findings, Messages, Path, is_blank, read_messages, read_tools
from luthier.data.rows import show_value
from luthier.data.strict_json import JsonError, parse
from luthier.data.types import Conversation

__all__ = [
    "SHAREGPT_ROLES",
    "add_system",
    "as_chat",
    "check_trainable",
    "finish_chat",
    "read_alpaca",
    "read_columns",
    "read_openai",
    "read_sharegpt",
    "read_turns",
    "tools_of",
]

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
_PLACEHOLDER = {"role": "user", "content": ""}
"""Stands for a turn whose fault is already recorded, so that it is not told twice."""


def finish_chat(fields: Fields, found: Messages, system: str | None, loss_on: str, *, at: Path = ()) -> Conversation:
    """Make a conversation of messages: add system message and tools, check that there is something to train on."""
    if not fields.findings.faults:
        check_trainable(found, at, fields.findings, loss_on)
    add_system(fields, found, system)
    return as_chat(fields, found, tools_of(fields))


def add_system(fields: Fields, found: Messages, system: str | None) -> None:
    """Put the row's own system message, or that of the source, in front."""
    own = fields.text("system", required=False) if fields.layout.has_field("system") else ""
    if own and found.has_system():
        fields.findings.add(fields.path("system"), "the row has a system message already")
    elif own:
        found.prepend_system(own)
    if system is not None and not fields.findings.faults and not found.has_system():
        found.prepend_system(system)


def as_chat(fields: Fields, found: Messages, tools: Sequence[Mapping[str, Any]] | None) -> Conversation:
    """Messages as a conversation."""
    return Conversation(
        kind="chat",
        ref=fields.row.ref,
        messages=tuple(found.messages),
        tools=tools,
        message_weights=tuple(found.weights),
        span_weights=found.spans,
    )


def tools_of(fields: Fields) -> Sequence[Mapping[str, Any]] | None:
    """`tools`; or the older `functions`, wrapped as OpenAI wraps them."""
    tools = read_tools(fields.get("tools"), fields.path("tools"), fields.findings)
    functions = read_tools(fields.get("functions"), fields.path("functions"), fields.findings)
    if tools is not None and functions is not None:
        fields.findings.add((), "`tools` and `functions` say the same thing: keep one")
    return tools if functions is None else [{"type": "function", "function": function} for function in functions]


def check_trainable(found: Messages, at: Path, findings: Findings, loss_on: str) -> None:
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


def read_openai(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`messages`, as in the OpenAI API."""
    path = fields.path("messages")
    value = fields.required("messages")
    found = read_messages(value, path, fields.findings) if fields.has("messages") else Messages()
    return finish_chat(fields, found, system, loss_on, at=path)


def read_columns(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`map: {user: question, assistant: answer}`: one message a column, in the order of a conversation."""
    found = Messages()
    for role in ("developer", "user", "assistant"):
        if role not in fields.layout.map:
            continue
        text = fields.text(role)
        if role == "assistant" and not text.strip():
            fields.findings.nothing_to_train(fields.path(role), "empty answer")
        found.messages.append({"role": role, "content": text})
        found.weights.append(None)
    return finish_chat(fields, found, system, loss_on)


def read_sharegpt(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`conversations` of `{from, value}` or `{role, content}` turns."""
    path = fields.path("conversations")
    value = fields.required("conversations")
    found = read_turns(value, path, fields.findings) if fields.has("conversations") else Messages()
    return finish_chat(fields, found, system, loss_on, at=path)


def read_turns(value: Any, path: Path, findings: Findings) -> Messages:
    """A list of `{from, value}` or `{role, content}` turns."""
    if isinstance(value, list):
        value = [_sharegpt_turn(turn, (*path, index), findings) for index, turn in enumerate(value)]
    return read_messages(value, path, findings)


def _sharegpt_turn(turn: Any, at: Path, findings: Findings) -> Any:
    """One `{from, value}` (or `{role, content}`) turn as an OpenAI message; other keys stay."""
    if not isinstance(turn, dict):
        return turn
    if ("from" in turn and "role" in turn) or ("value" in turn and "content" in turn):
        findings.add(at, "a turn has `from` and `value`, or `role` and `content`, not both")
        return _PLACEHOLDER
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
        return _PLACEHOLDER
    what = turn.get(what_key)
    if what_key not in turn or (not isinstance(what, str) and what_key == "value"):
        findings.wrong((*at, what_key), "string", what)
        return _PLACEHOLDER
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


def read_alpaca(fields: Fields, system: str | None, loss_on: str) -> Conversation:
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
    return finish_chat(fields, found, system, loss_on, at=fields.path("history") if history else ())
