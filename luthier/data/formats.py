"""Find out which format rows are in. A verdict with its reason, or an error; never a guess that changes the meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.layout import FIELDS, FORMATS, ROLE_KEYS, Layout
from luthier.data.suggest import suggest_map, yaml_map
from luthier.runtime.errors import DataError, Problem

__all__ = ["SAMPLE_ROWS", "choose_layout", "verdict"]

SAMPLE_ROWS = 200
"""Rows that are looked at to tell the format; every row is checked against the verdict afterwards."""

_SHAPES = {
    "messages": "a list `{messages}` with role and content",
    "sharegpt": "a list `{conversations}` of turns",
    "alpaca": "`{instruction}` and `{output}`",
    "prompt_completion": "`{prompt}` and `{completion}`",
    "text": "a string `{text}`",
    "segments": "a list `{segments}` of pieces with label and text",
    "columns": "`{user}` (user) and `{assistant}` (assistant)",
}
_ANSWER_LIKE = {"label", "labels", "answer", "response", "output", "target", "summary", "completion", "sentiment"}


def choose_layout(
    format_: str, mapping: Mapping[str, str], sample: Sequence[Mapping[str, Any]], *, file: str
) -> Layout:
    """Decide the layout of rows from the recipe's `format` and `map` and from the first rows.

    Raises:
        DataError: `map` has an unknown key or names a column no row has; the format is unknown or ambiguous.
            Lists the columns found, the formats known and a `map` to copy.
    """
    if format_ == "auto":
        layout = _mapped(mapping, sample, file=file) if mapping else _detect(sample, file=file)
    else:
        layout = Layout(*_explicit(format_, mapping, file=file))
    if sample:
        _check_columns(layout, sample, file=file)
    return layout


def verdict(layout: Layout, rows: int, unused: Sequence[str] = ()) -> str:
    """One sentence on what was found: `messages: 10 of 10 rows have a list ...`."""
    shape = _SHAPES[layout.format].format_map({name: layout.column(name) for name in layout.required()})
    text = f"{layout.name}: {rows:,} of {rows:,} rows have {shape}"
    if unused:
        listed = ", ".join(sorted(unused)[:10]) + (", ..." if len(unused) > 10 else "")
        text += f"; columns not used: {listed}"
    return text


def _explicit(format_: str, mapping: Mapping[str, str], *, file: str) -> tuple[str, dict[str, str]]:
    """Check the keys of `map` against the format; roles in the map of `messages` make columns a chat."""
    keys = _aliased(format_, mapping)
    if format_ == "messages" and "messages" not in keys and {"user", "assistant"} & set(keys):
        format_ = "columns"
        missing = [name for name in FIELDS["columns"][0] if name not in keys]
        if missing:
            raise _map_error(file, f"`map` makes a chat of columns but has no `{missing[0]}`", _map_help("columns"))
    allowed = [name for part in FIELDS[format_] for name in part]
    unknown = [name for name in keys if name not in allowed]
    if unknown:
        listed = ", ".join(f"`{name}`" for name in unknown)
        raise _map_error(file, f"`map` has {listed}, no field of format `{format_}`", _map_help(format_))
    return format_, keys


def _aliased(format_: str, mapping: Mapping[str, str]) -> dict[str, str]:
    """`messages` and `conversations` are the same field under the names of two formats."""
    alias = {"messages": ("conversations", "messages"), "sharegpt": ("messages", "conversations")}.get(format_)
    if alias and alias[0] in mapping and alias[1] not in mapping:
        return {alias[1] if key == alias[0] else key: column for key, column in mapping.items()}
    return dict(mapping)


def _map_help(format_: str) -> str:
    required, optional = FIELDS[format_]
    if format_ == "columns":
        return "for instance `map: {user: question, assistant: answer}`; `system` may be added"
    return f"its fields are: {', '.join((*required, *optional))}"


def _map_error(file: str, message: str, hint: str) -> DataError:
    return DataError(problems=[Problem(code="D209", message=message, file=file, hint=hint)])


def _mapped(mapping: Mapping[str, str], sample: Sequence[Mapping[str, Any]], *, file: str) -> Layout:
    """The layout a `map` without a format asks for: the one format that has all its keys."""
    turns = next((name for name in ("messages", "conversations") if name in mapping), None)
    if turns is None and any(key in mapping for key in ("user", "assistant")):
        return Layout(*_explicit("messages", mapping, file=file))
    if turns is not None:
        probe = Layout("messages", {"messages": mapping[turns]})
        keys = {key for row in sample for turn in _turns(row, probe, "messages") for key in turn}
        sharegpt = "from" in keys or (turns == "conversations" and "role" not in keys)
        return Layout(*_explicit("sharegpt" if sharegpt else "messages", mapping, file=file))
    fitting = [
        name
        for name in FORMATS
        if set(mapping) <= {*FIELDS[name][0], *FIELDS[name][1]} and set(mapping) & set(FIELDS[name][0])
    ]
    if len(fitting) == 1:
        return Layout(fitting[0], dict(mapping))
    roles = ", ".join(ROLE_KEYS)
    known = "; ".join(f"{name}: {', '.join(FIELDS[name][0] + FIELDS[name][1])}" for name in FORMATS)
    raise _map_error(file, f"`map` keys {', '.join(mapping)} belong to no one format", f"roles: {roles}; {known}")


def _detect(sample: Sequence[Mapping[str, Any]], *, file: str) -> Layout:
    layouts = [Layout(name) for name in FORMATS]
    if any("from" in turn for row in sample for turn in _turns(row, Layout("messages"), "messages")):
        layouts.append(Layout("sharegpt", {"conversations": "messages"}))
    counts = [(sum(_fits(layout, row) for row in sample), layout) for layout in layouts]
    found = [layout for count, layout in counts if 2 * count > len(sample)]
    if not found:
        # The right columns with wrong values: take the format, so that each bad row is named with its fault.
        found = [
            layout
            for layout in layouts[: len(FORMATS)]
            if sum(_has_columns(layout, row) for row in sample) * 2 > len(sample)
        ]
    if len(found) == 1:
        return found[0]
    columns = sorted({str(column) for row in sample for column in row})
    suggestion = suggest_map(sample)
    if found:
        names = " and ".join(layout.name for layout in found)
        what = f"the rows fit more than one format: {names}"
        hint = "choose one, for instance `format: " + found[0].name + "`"
    else:
        what = "the rows are in no known format"
        hint = f"say which column is what, for instance `map: {yaml_map(suggestion)}`" if suggestion else "add a `map`"
    known = "; ".join(f"{name} ({', '.join(FIELDS[name][0])})" for name in FORMATS)
    message = f"{what}. Columns found: {', '.join(columns) or 'none'}. Formats known: {known}"
    raise DataError(problems=[Problem(code="D210", message=message, file=file, hint=hint)])


def _turns(row: Mapping[str, Any], layout: Layout, name: str) -> list[Mapping[str, Any]]:
    value: Any = row
    for step in layout.path_in(row, name):
        value = value.get(step) if isinstance(value, dict) else None
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


def _has_columns(layout: Layout, row: Mapping[str, Any]) -> bool:
    # `text` beside `label` or `output` is a question more often than a text to learn by heart.
    if layout.format == "text" and _ANSWER_LIKE & {str(column).lower() for column in row}:
        return False
    return all(layout.column(name) in row for name in layout.required())


def _fits(layout: Layout, row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a format with values of about the right shape."""
    if not _has_columns(layout, row):
        return False
    values = [row[layout.column(name)] for name in layout.required()]
    if layout.format in {"messages", "sharegpt", "segments"}:
        key = {"messages": "role", "segments": "text"}.get(layout.format)
        turns = _turns(row, layout, layout.required()[0])
        return isinstance(values[0], list) and all(
            key in turn if key else "from" in turn or "role" in turn for turn in turns
        )
    if layout.format == "prompt_completion":
        return all(isinstance(value, (str, list)) for value in values)
    return all(isinstance(value, str) for value in values)


def _check_columns(layout: Layout, sample: Sequence[Mapping[str, Any]], *, file: str) -> None:
    """A required column that no row has, and a mapped column that no row has, are told once and not per row."""
    columns = sorted({str(column) for row in sample for column in row})
    asked = dict.fromkeys([*layout.required(), *layout.map])
    missing = [name for name in asked if not any(_reaches(row, layout, name) for row in sample)]
    if missing:
        listed = ", ".join(f"`{layout.column(name)}`" for name in missing)
        there = ", ".join(columns) or "none"
        message = f"no column {listed} (format {layout.name}); columns found: {there}"
        suggestion = suggest_map(sample)
        hint = f"for instance `map: {yaml_map(suggestion)}`" if suggestion else None
        raise DataError(problems=[Problem(code="D209", message=message, file=file, hint=hint)])


def _reaches(row: Mapping[str, Any], layout: Layout, name: str) -> bool:
    value: Any = row
    for step in layout.path_in(row, name):
        if not isinstance(value, dict) or step not in value:
            return False
        value = value[step]
    return True
