"""Normal form -> a row of a file, so that reading the row gives the same normal form again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.annotate.edits import prompt_length
from luthier.data.layout import FIELDS
from luthier.data.types import Conversation
from luthier.runtime.errors import DataError, Problem

__all__ = ["RESERVED", "openai_preference_row", "preference_row", "training_row"]

RESERVED = {name for required, optional in FIELDS.values() for name in (*required, *optional)}
"""Columns some format reads: beside the row's own they would change what the row is taken for."""


def training_row(row: Conversation) -> dict[str, Any]:
    """A row to train on: `messages` (with `tools`), `prompt` and `completion`, `text`, or `segments`."""
    if row.kind == "prompt_completion":
        return {"prompt": row.prompt, "completion": row.completion}
    if row.kind == "text":
        return {"text": row.text}
    if row.kind == "segments":
        return {"segments": [{"text": piece.text, "weight": piece.weight} for piece in row.segments]}
    if row.kind != "chat":
        raise ValueError(f"rows of kind {row.kind} hold answers to choose from")
    return {"messages": _messages(row, 0, len(row.messages)), **_tools(row)}


def preference_row(pair: Conversation) -> dict[str, Any]:
    """A pair as TRL writes it: `prompt`, `chosen`, `rejected`; messages, or raw text."""
    first, second = pair.answers
    margin = {} if pair.margin is None else {"margin": pair.margin}
    if first.kind == "prompt_completion":
        return {"prompt": first.prompt, "chosen": first.completion, "rejected": second.completion, **margin}
    length = prompt_length(pair)
    return {
        "prompt": [dict(message) for message in first.messages[:length]],
        "chosen": _messages(first, length, len(first.messages)),
        "rejected": _messages(second, length, len(second.messages)),
        **_tools(first),
        **margin,
    }


def openai_preference_row(pair: Conversation) -> dict[str, Any]:
    """A pair as OpenAI's format for DPO has it: `input`, `preferred_output`, `non_preferred_output`.

    Raises:
        DataError: raw text, which the format has no place for.
    """
    if pair.answers[0].kind != "chat":
        message = "raw text; openai_preference holds chats"
        raise DataError(problems=[Problem(code="D295", message=message, file=pair.ref.file, line=pair.ref.line,
                                          hint="--as preference")])  # fmt: skip
    row = preference_row(pair)
    tools = {"tools": row["tools"]} if "tools" in row else {}
    margin = {"margin": row["margin"]} if "margin" in row else {}
    return {
        "input": {"messages": row["prompt"], **tools},
        "preferred_output": row["chosen"],
        "non_preferred_output": row["rejected"],
        **margin,
    }


def _messages(row: Conversation, start: int, end: int) -> list[dict[str, Any]]:
    """Messages with their loss control back in them."""
    return [
        {**row.messages[place], **_weight(row.message_weights[place]), **_spans(row.span_weights.get(place, ()))}
        for place in range(start, end)
    ]


def _weight(weight: float | None) -> Mapping[str, Any]:
    return {} if weight is None else {"weight": int(weight) if weight.is_integer() else weight}


def _spans(spans: Sequence[tuple[int, int, float]]) -> Mapping[str, Any]:
    return {"spans": [{"start": s, "end": e, "weight": w} for s, e, w in spans]} if spans else {}


def _tools(row: Conversation) -> Mapping[str, Any]:
    return {} if row.tools is None else {"tools": list(row.tools)}
