"""Rows in normal form written as rows again: reading them back gives the same rows, with the same loss weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.data.types import Conversation
from luthier.runtime.errors import DataError, Problem

__all__ = ["rows_as_json"]


def rows_as_json(rows: Sequence[Conversation]) -> list[dict[str, Any]]:
    """One object for each row, all in one format: `messages`, `prompt_completion`, `text` or `segments`.

    Raises:
        DataError: preferences, or rows of several formats, which no reader would take as one file.
    """
    kinds = sorted({row.kind for row in rows})
    if len(kinds) > 1 or set(kinds) & {"pair", "rated"}:
        what = "preferences are not written" if set(kinds) & {"pair", "rated"} else "one file holds one format"
        message = f"rows of kind {', '.join(kinds)}: {what}"
        raise DataError(problems=[Problem(code="D249", message=message, hint="leave --out away, or mix other sources")])
    return [_as_json(row) for row in rows]


def _as_json(row: Conversation) -> dict[str, Any]:
    if row.kind == "chat":
        value: dict[str, Any] = {"messages": [_message(row, index) for index in range(len(row.messages))]}
        return {**value, "tools": list(row.tools)} if row.tools else value
    if row.kind == "prompt_completion":
        return {"prompt": row.prompt, "completion": row.completion}
    if row.kind == "text":
        return {"text": row.text}
    return {"segments": [{"text": segment.text, "weight": segment.weight} for segment in row.segments]}


def _message(row: Conversation, index: int) -> dict[str, Any]:
    message = dict(row.messages[index])
    weight = row.message_weights[index] if index < len(row.message_weights) else None
    if weight is not None:
        message["weight"] = weight
    if spans := row.span_weights.get(index):
        message["spans"] = [{"start": start, "end": end, "weight": own} for start, end, own in spans]
    return message
