"""A `map` to copy for rows in no known format. Only ever suggested in a message, never applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["suggest_map", "yaml_map"]

_QUESTION = (
    "question",
    "query",
    "prompt",
    "instruction",
    "input",
    "problem",
    "user",
    "human",
    "request",
    "source",
    "q",
)
_ANSWER = (
    "answer", "response", "output", "completion", "assistant", "chosen", "reply", "solution", "target", "label",
    "summary", "a",
)  # fmt: skip
_TURNS = ("conversation", "dialogue", "dialog", "chat", "turns", "chosen")


def suggest_map(sample: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Guess which column is what, from the usual names; empty if nothing looks familiar."""
    texts = _columns(sample, str)
    lists = [name for name in _columns(sample, list) if all(_is_turns(row[name]) for row in sample if name in row)]
    if lists:
        return {"messages": next((name for name in lists if name.lower() in _TURNS), lists[0])}
    lower = {name.lower(): name for name in texts}
    if "instruction" in lower and "context" in lower:
        answer = _first(lower, _ANSWER)
        if answer:
            return {"instruction": lower["instruction"], "input": lower["context"], "output": answer}
    question, answer = _first(lower, _QUESTION), _first(lower, _ANSWER)
    if question is None or answer is None:
        if len(texts) != 2 or (question is None and answer is None):
            return {}
        question = question or next(name for name in texts if name != answer)
        answer = answer or next(name for name in texts if name != question)
    suggestion = {"user": question, "assistant": answer}
    system = _first(lower, ("system", "system_prompt"))
    return {"system": system, **suggestion} if system else suggestion


def yaml_map(mapping: Mapping[str, str]) -> str:
    """`{user: question, assistant: answer}`."""
    return "{" + ", ".join(f"{key}: {column}" for key, column in mapping.items()) + "}"


def _columns(sample: Sequence[Mapping[str, Any]], kind: type) -> list[str]:
    names = dict.fromkeys(name for row in sample for name in row)
    return [name for name in names if all(isinstance(row[name], kind) for row in sample if name in row)]


def _is_turns(value: Any) -> bool:
    return bool(value) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)


def _first(lower: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((lower[name] for name in names if name in lower), None)
