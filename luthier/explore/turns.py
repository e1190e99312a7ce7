"""What a row says, turn by turn, whatever its kind: for counts of characters, for the map, and for its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.types import Conversation

__all__ = ["Turn", "text_to_embed", "turns_of"]

_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
_CONTEXT = {"system", "developer", "tools"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that is said."""

    role: str
    """As in the row; `tools` for the tools of a chat; `prompt`, `completion`, `text`, `segment` for raw text."""
    text: str
    mark: str = ""
    """What is special: `reasoning`, `call`, `chosen`, `rejected`, `desired`, `undesired`, `context` (a segment)."""


def turns_of(row: Conversation) -> list[Turn]:
    """All turns of a row in order. Of a pair: the shared prompt once, then the chosen and the rejected answer."""
    if row.answers:
        return _preference(row)
    if row.kind == "chat":
        tools = [Turn("tools", _json(row.tools))] if row.tools else []
        return [*tools, *(turn for message in row.messages for turn in _message(message))]
    if row.kind == "text":
        return [Turn("text", row.text)]
    if row.kind == "segments":
        return [Turn("segment", piece.text, "" if piece.weight else "context") for piece in row.segments]
    return [Turn("prompt", row.prompt), Turn("completion", row.completion)]


def text_to_embed(turns: Sequence[Turn], on: str) -> str:
    """The text that decides where a row stands on the map.

    Args:
        turns: Of the row.
        on: `conversation` (all but system messages and tools), `prompt` (what is before the last answer) or `answer`.
    """
    said = [turn for turn in turns if turn.role not in _CONTEXT]
    answer = [turn for turn in said if _answers(turn)]
    if on == "answer":
        said = answer[-1:]
    elif on == "prompt":
        said = [turn for turn in said if not _answers(turn)]
    return "\n".join(turn.text for turn in said) or "\n".join(turn.text for turn in turns)


def _answers(turn: Turn) -> bool:
    return turn.role in {"assistant", "completion"} or (turn.role == "segment" and not turn.mark)


def _preference(row: Conversation) -> list[Turn]:
    answers = [turns_of(answer) for answer in row.answers]
    names = ("chosen", "rejected") if row.label is None else ("desired" if row.label else "undesired",)
    shared = 0
    if len(answers) == 1:
        shared = max(0, len(answers[0]) - 1)
    else:
        while all(len(answer) > shared + 1 for answer in answers) and answers[0][shared] == answers[1][shared]:
            shared += 1
    found = list(answers[0][:shared])
    for name, answer in zip(names, answers, strict=False):
        found += [Turn(turn.role, turn.text, name) for turn in answer[shared:]]
    return found


def _message(message: Mapping[str, Any]) -> list[Turn]:
    role = str(message["role"])
    found = [Turn(role, str(message[key]), "reasoning") for key in _REASONING if message.get(key)][:1]
    content = message.get("content")
    text = content if isinstance(content, str) else "\n".join(_piece(item) for item in content or ())
    calls = [Turn(role, _json(message[key]), "call") for key in _CALLS if message.get(key)]
    text = text or str(message.get("refusal") or "")
    if text or not (found or calls):
        found.append(Turn(role, text))
    return found + calls


def _piece(item: Any) -> str:
    return str(item["text"]) if isinstance(item, Mapping) and item.get("type") == "text" else _json(item)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
