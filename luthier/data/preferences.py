"""Rows of preferences -> `Conversation` of kind `pair` or `rated`: the shapes of TRL, OpenAI and LLaMA-Factory.

Where the answers begin, and what counts in them, is in `beginnings.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from luthier.data.beginnings import answers_of, context_only, shared_messages, shared_text, whole_weights
from luthier.data.chats import SHAREGPT_ROLES, add_system, as_chat, check_trainable, read_turns, tools_of
from luthier.data.fields import Fields
from luthier.data.messages import Findings, Messages, Path, read_messages, read_tools
from luthier.data.raw import refuse_system
from luthier.data.types import Conversation

__all__ = [
    "as_rated",
    "read_openai_pair",
    "read_pair",
    "read_pair_columns",
    "read_rated",
    "read_rated_columns",
    "read_sharegpt_pair",
]

_OPENAI_INPUT = ("messages", "tools", "parallel_tool_calls")


def as_rated(pair: Conversation) -> list[Conversation]:
    """A pair as two rated rows, as TRL unpairs them: the chosen answer is desired, the rejected one is not."""
    labels = (True, False)
    return [
        Conversation(kind="rated", ref=pair.ref, answers=(answer,), label=label)
        for answer, label in zip(pair.answers, labels, strict=True)
    ]


# --- pairs --------------------------------------------------------------------------------------------------------


def read_pair(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`prompt` (or none), `chosen`, `rejected`: raw texts, or messages."""
    chosen, rejected = fields.required("chosen"), fields.required("rejected")
    prompt = fields.get("prompt")
    answers = [("chosen", chosen), ("rejected", rejected)]
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        if prompt is not None and not isinstance(prompt, str):
            fields.findings.wrong(fields.path("prompt"), "string or a list of messages", prompt)
        return _raw_pair(fields, prompt, (chosen, rejected), system)
    if isinstance(chosen, str) != isinstance(rejected, str) and fields.has("chosen") and fields.has("rejected"):
        fields.findings.add((), "`chosen` and `rejected` must be both strings or both messages")
        return Conversation(kind="pair", ref=fields.row.ref)
    return _chat_pair(fields, _prompt(fields, prompt, chosen, rejected), answers, system, loss_on)


def read_pair_columns(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`map: {user: question}`: texts of single columns as a chat."""
    answers = [(name, fields.required(name)) for name in ("chosen", "rejected")]
    return _chat_pair(fields, _asked(fields), answers, system, loss_on)


def read_openai_pair(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """OpenAI's format for DPO: `input` with `messages`, `preferred_output`, `non_preferred_output`."""
    value, path = fields.required("input"), fields.path("input")
    prompt, tools = Messages(), None
    if isinstance(value, dict):
        unknown = [key for key in value if key not in _OPENAI_INPUT]
        if unknown:
            fields.findings.add(path, f"unknown {', '.join(unknown)}; it has {', '.join(_OPENAI_INPUT)}")
        prompt = _messages(value.get("messages"), (*path, "messages"), fields.findings)
        tools = read_tools(value.get("tools"), (*path, "tools"), fields.findings)
    elif fields.has("input"):
        fields.findings.wrong(path, "an object with messages", value)
    answers = [(name, fields.required(name)) for name in ("preferred_output", "non_preferred_output")]
    return _chat_pair(fields, prompt, answers, system, loss_on, tools=tools)


def read_sharegpt_pair(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """LLaMA-Factory's format: `conversations`, then one `chosen` and one `rejected` turn."""
    value = fields.required("conversations")
    prompt = _messages(value, fields.path("conversations"), fields.findings) if fields.has("conversations") else None
    answers = [(name, fields.required(name)) for name in ("chosen", "rejected")]
    return _chat_pair(fields, prompt or Messages(), answers, system, loss_on)


def _chat_pair(
    fields: Fields,
    prompt: Messages | None,
    answers: Sequence[tuple[str, Any]],
    system: str | None,
    loss_on: str,
    *,
    tools: Any = None,
) -> Conversation:
    """Two chats with one beginning; `prompt` None: the messages both answers begin with."""
    found = [(fields.path(name), _turns_of(fields, name, value)) for name, value in answers]
    sides = [messages for _, messages in found]
    if not fields.findings.faults and prompt is None:
        shared = shared_messages(sides, fields.findings)
        for path, messages in found:
            context_only(messages, shared, path, fields.findings)
    if prompt is not None:
        context_only(prompt, len(prompt.messages), (), fields.findings)
    for path, messages in found:
        whole_weights(messages, path, fields.findings)
        if not fields.findings.faults:
            check_trainable(messages, path, fields.findings, loss_on)
    if not fields.findings.faults and sides[0] == sides[1]:
        fields.findings.equal = "the chosen and the rejected answer are the same"
    wholes = [_behind(prompt, messages) for messages in sides]
    tools = tools if tools is not None else tools_of(fields)
    for whole in wholes:
        if not fields.findings.faults:
            add_system(fields, whole, system)
    chats = tuple(as_chat(fields, whole, tools) for whole in wholes)
    return Conversation(kind="pair", ref=fields.row.ref, answers=chats, margin=_margin(fields))


def _raw_pair(fields: Fields, prompt: str | None, answers: tuple[str, str], system: str | None) -> Conversation:
    chosen, rejected = answers
    if prompt is None:
        prompt = shared_text(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            fields.findings.nothing_to_train(fields.path(name), "empty answer")
    if chosen == rejected:
        fields.findings.equal = "the chosen and the rejected answer are the same"
    refuse_system(fields, system)
    return Conversation(
        kind="pair",
        ref=fields.row.ref,
        answers=tuple(_raw(fields, prompt, text) for text in (chosen, rejected)),
        margin=_margin(fields),
    )


def _margin(fields: Fields) -> float | None:
    """`margin`: a finite number, or none; a CSV file has it as text."""
    value = fields.get("margin")
    if value is None or value == "":
        return None
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        fields.findings.wrong(fields.path("margin"), "a number", value)
        return None
    return float(number)


# --- rated answers ------------------------------------------------------------------------------------------------


def read_rated(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`prompt`, `completion`, `label`; without a prompt, the messages before the last answer are it."""
    prompt, completion = fields.get("prompt"), fields.required("completion")
    if isinstance(completion, str) and not isinstance(prompt, list):
        if prompt is not None and not isinstance(prompt, str):
            fields.findings.wrong(fields.path("prompt"), "string or a list of messages", prompt)
        if not completion.strip():
            fields.findings.nothing_to_train(fields.path("completion"), "empty completion")
        refuse_system(fields, system)
        answer = _raw(fields, prompt or "", completion)
        return Conversation(kind="rated", ref=fields.row.ref, answers=(answer,), label=_label(fields))
    return _chat_rated(fields, _prompt(fields, prompt, completion), system, loss_on)


def read_rated_columns(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`map: {user: question}`: texts of single columns as a chat."""
    return _chat_rated(fields, _asked(fields), system, loss_on)


def _chat_rated(fields: Fields, prompt: Messages | None, system: str | None, loss_on: str) -> Conversation:
    path = fields.path("completion")
    answer = _turns_of(fields, "completion", fields.required("completion"))
    if prompt is None:
        answers = answers_of(answer)
        context_only(answer, answers[-1] if answers else len(answer.messages), path, fields.findings)
    else:
        context_only(prompt, len(prompt.messages), (), fields.findings)
    whole_weights(answer, path, fields.findings)
    if not fields.findings.faults:
        check_trainable(answer, path, fields.findings, loss_on)
    whole = _behind(prompt, answer)
    if not fields.findings.faults:
        add_system(fields, whole, system)
    chat = as_chat(fields, whole, tools_of(fields))
    return Conversation(kind="rated", ref=fields.row.ref, answers=(chat,), label=_label(fields))


def _label(fields: Fields) -> bool | None:
    """`label`: true or false; a CSV file has it as text."""
    value = fields.required("label")
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool) and fields.has("label"):
        fields.findings.wrong(fields.path("label"), "true (desired) or false", value)
    return value if isinstance(value, bool) else None


# --- parts --------------------------------------------------------------------------------------------------------


def _raw(fields: Fields, prompt: str, completion: str) -> Conversation:
    return Conversation(kind="prompt_completion", ref=fields.row.ref, prompt=prompt, completion=completion)


def _asked(fields: Fields) -> Messages:
    """Mapped `developer` and `user` columns."""
    found = Messages()
    for role in ("developer", "user"):
        if role in fields.layout.map or role == "user":
            found.messages.append({"role": role, "content": fields.text(role)})
            found.weights.append(None)
    return found


def _prompt(fields: Fields, value: Any, *answers: Any) -> Messages | None:
    """The prompt of a chat; None where the answers are whole conversations and bring it.

    A string is a user message. Some sets (UltraFeedback) have whole conversations and repeat their first question.
    """
    if value is None:
        return None
    starts = [_starts_with(answer, value) for answer in answers]
    if all(starts):
        return None
    if any(starts):
        fields.findings.add((), "one answer is a whole conversation that begins with `prompt`, the other is not")
    elif isinstance(value, str):
        if any(isinstance(answer, list) and answer and _role(answer[0]) != "assistant" for answer in answers):
            fields.findings.add((), "the answers are whole conversations, and `prompt` is not their first user message")
        return Messages([{"role": "user", "content": value}], [None])
    return _messages(value, fields.path("prompt"), fields.findings)


def _starts_with(answer: Any, prompt: Any) -> bool:
    """Whether a whole conversation begins with the prompt."""
    if not isinstance(answer, list):
        return False
    if isinstance(prompt, list):
        return bool(prompt) and answer[: len(prompt)] == prompt
    first = next((turn for turn in answer[:2] if _role(turn) not in {"system", "developer"}), None)
    return first is not None and _role(first) == "user" and prompt in (first.get("content"), first.get("value"))


def _role(turn: Any) -> Any:
    found = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return SHAREGPT_ROLES.get(found, found) if isinstance(found, str) else None


def _turns_of(fields: Fields, name: str, value: Any) -> Messages:
    """An answer: a text, one message, or a list of messages."""
    path = fields.path(name)
    if isinstance(value, str):
        return Messages([{"role": "assistant", "content": value}], [None])
    if isinstance(value, dict):
        return _messages([value], path, fields.findings)
    if value is None and not fields.has(name):
        return Messages()
    return _messages(value, path, fields.findings)


def _messages(value: Any, path: Path, findings: Findings) -> Messages:
    """A list of messages, or of `{from, value}` turns."""
    turns = isinstance(value, list) and any(isinstance(turn, dict) and "from" in turn for turn in value)
    return read_turns(value, path, findings) if turns else read_messages(value, path, findings)


def _behind(prompt: Messages | None, answer: Messages) -> Messages:
    whole = Messages()
    if prompt is not None:
        whole.extend(prompt)
    whole.extend(answer)
    return whole
