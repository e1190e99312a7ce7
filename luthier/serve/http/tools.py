"""Tool calls in a model's text, for the formats that are known.

`hermes` (Hermes, Qwen2.5, Qwen3): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of
them, with or without text before. `llama3` (Llama 3.1 and later): the whole answer is
`{"name": ..., "parameters": {...}}`. What does not parse stays text: nothing of an answer is lost.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.serve.engine.text import held_back

__all__ = ["Call", "ToolFormat", "ToolReader", "tool_format"]

ToolFormat = Literal["hermes", "llama3", "unknown"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: str
    """JSON."""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def as_dict(self) -> dict[str, Any]:
        """As OpenAI tells it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def tool_format(template: str, control: frozenset[str]) -> ToolFormat:
    """The format a chat template asks for, as far as it is known.

    Args:
        template: Its text.
        control: Control tokens: their text never reaches an answer.
    """
    if OPEN in template and "<function=" not in template and OPEN not in control and CLOSE not in control:
        return "hermes"
    if '"parameters": dictionary of argument name' in template:
        return "llama3"
    return "unknown"


class ToolReader:
    """Reads an answer piece by piece: `push` returns text to show and calls that are complete."""

    def __init__(self, kind: ToolFormat) -> None:
        self.kind = kind
        self.calls = 0
        self._held = ""
        self._begun = False
        """Text was shown."""

    def push(self, text: str) -> tuple[str, list[Call]]:
        """More of the answer."""
        self._held += text
        if self.kind == "hermes":
            return self._hermes()
        if self.kind == "llama3" and not self._begun and self._held.lstrip()[:1] in ("", "{"):
            return "", []
        return self._out(), []

    def finish(self) -> tuple[str, list[Call]]:
        """The end of the answer: a call that was not closed, or text that was held back."""
        held = self._held.strip()
        body = held.removeprefix(OPEN).strip() if self.kind == "hermes" else held
        if self.kind == "llama3" or held.startswith(OPEN):
            call = _call(body, "arguments" if self.kind == "hermes" else "parameters")
            if call is not None:
                self._held = ""
                self.calls += 1
                return "", [call]
        return self._out(), []

    def _out(self) -> str:
        text, self._held = self._held, ""
        self._begun = self._begun or bool(text)
        return text

    def _hermes(self) -> tuple[str, list[Call]]:
        shown = ""
        calls: list[Call] = []
        while True:
            start = self._held.find(OPEN)
            if start < 0:
                keep = held_back(self._held, (OPEN,))
                # White space before a call, and between two, is layout.
                keep = max(keep, len(self._held) - len(self._held[: len(self._held) - keep].rstrip()))
                end = len(self._held) - keep
                shown, self._held = shown + self._held[:end], self._held[end:]
                return shown, calls
            close = self._held.find(CLOSE, start)
            if close < 0:
                shown, self._held = shown + self._held[:start].rstrip(), self._held[start:]
                return shown, calls
            call = _call(self._held[start + len(OPEN) : close], "arguments")
            before, whole = self._held[:start], self._held[start : close + len(CLOSE)]
            self._held = self._held[close + len(CLOSE) :]
            if call is None:
                shown += before + whole
            else:
                shown += before.rstrip()
                calls.append(call)
                self.calls += 1


def _call(text: str, key: str) -> Call | None:
    """A call in JSON, or None."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or set(value) - {"name", key}:
        return None
    arguments = value.get(key, {})
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))
