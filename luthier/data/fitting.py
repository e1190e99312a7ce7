"""Whether a row fits a layout: the columns, and values of about the right shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.layout import Layout

__all__ = ["fits", "has_columns", "reaches", "turns"]

_ANSWER_LIKE = {"label", "labels", "answer", "response", "output", "target", "summary", "completion", "sentiment"}


def turns(row: Mapping[str, Any], layout: Layout, name: str) -> list[Mapping[str, Any]]:
    """The objects in a list of turns; empty where there is no list."""
    value: Any = row
    for step in layout.path_in(row, name):
        value = value.get(step) if isinstance(value, dict) else None
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


def has_columns(layout: Layout, row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a format."""
    # `text` beside `label` or `output` is a question more often than a text to learn by heart.
    if layout.format == "text" and _ANSWER_LIKE & {str(column).lower() for column in row}:
        return False
    return all(layout.column(name) in row for name in layout.required())


def fits(layout: Layout, row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a format with values of about the right shape."""
    if not has_columns(layout, row):
        return False
    values = [row[layout.column(name)] for name in layout.required()]
    if layout.format in {"messages", "sharegpt", "segments"}:
        key = {"messages": "role", "segments": "text"}.get(layout.format)
        return isinstance(values[0], list) and all(
            key in turn if key else "from" in turn or "role" in turn
            for turn in turns(row, layout, layout.required()[0])
        )
    if layout.format == "prompt_completion":
        return all(isinstance(value, (str, list)) for value in values)
    if layout.kind != "tokens":
        return _fits_preference(layout, values)
    return all(isinstance(value, str) for value in values)


def _fits_preference(layout: Layout, values: Sequence[Any]) -> bool:
    if layout.format == "preference":
        return all(isinstance(value, (str, list, dict)) for value in values)
    if layout.format == "openai_preference":
        return isinstance(values[0], dict) and all(isinstance(value, list) for value in values[1:])
    if layout.format == "sharegpt_preference":
        return isinstance(values[0], list) and all(isinstance(value, (dict, list)) for value in values[1:])
    text = isinstance(values[1], str) and values[1].lower() in {"true", "false"}
    return isinstance(values[0], (str, list, dict)) and (isinstance(values[1], bool) or text)


def reaches(row: Mapping[str, Any], layout: Layout, name: str) -> bool:
    """Whether a row has a field."""
    value: Any = row
    for step in layout.path_in(row, name):
        if not isinstance(value, dict) or step not in value:
            return False
        value = value[step]
    return True
