"""Find out which format rows are in. A verdict with its reason, or an error; never a guess that changes the meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.data.fitting import fits, has_columns, reaches, turns
from luthier.data.layout import COLUMN_FORMATS, FIELDS, FORMATS, KINDS, ROLE_KEYS, Layout
from luthier.data.suggest import suggest_map, yaml_map
from luthier.recipe.objective_kind import RowKind, objectives_text
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
    "preference": "`{chosen}` and `{rejected}`",
    "openai_preference": "`{input}`, `{preferred_output}` and `{non_preferred_output}`",
    "sharegpt_preference": "a list `{conversations}`, `{chosen}` and `{rejected}`",
    "unpaired_preference": "`{completion}` and `{label}`",
    "pair_columns": "`{user}` (user), `{chosen}` and `{rejected}` (assistant)",
    "rated_columns": "`{user}` (user), `{completion}` (assistant) and `{label}`",
}
_PREFERENCE: Mapping[RowKind, str] = {"pairs": "preference", "rated": "unpaired_preference", "tokens": "messages"}
_RAW = ", raw text without the chat template, as in TRL (`map: {user: prompt}` makes a chat of prompt and answers)"


def choose_layout(
    format_: str,
    mapping: Mapping[str, str],
    sample: Sequence[Mapping[str, Any]],
    *,
    file: str,
    kind: RowKind | None = None,
) -> Layout:
    """Decide the layout of rows from the recipe's `format` and `map` and from the first rows.

    Args:
        format_: of the recipe; `auto` looks at the rows.
        mapping: of the recipe.
        sample: the first rows.
        file: for messages.
        kind: the rows the objective trains on (rated answers may be made of pairs); None: any, and of several formats
            that fit, the one for preferences.

    Raises:
        DataError: `map` has an unknown key or names a column no row has; the format is unknown or ambiguous, or not
            for this objective. Lists the columns found, the formats known and a `map` to copy.
    """
    if format_ == "auto":
        layout = _mapped(mapping, sample, file=file, kind=kind) if mapping else _detect(sample, file=file, kind=kind)
    else:
        layout = Layout(*_explicit(format_, mapping, file=file))
    if kind is not None and not _serves(layout, kind):
        raise wrong_kind(layout, kind, sample, file=file)
    if sample:
        _check_columns(layout, sample, file=file)
    return layout


def verdict(layout: Layout, rows: int, unused: Sequence[str] = (), *, raw: bool = False) -> str:
    """One sentence on what was found: `messages: 10 of 10 rows have a list ...`; `raw`: preferences in plain text."""
    shape = _SHAPES[layout.format].format_map({name: layout.column(name) for name in layout.required()})
    text = f"{layout.name}: {rows:,} of {rows:,} rows have {shape}"
    if raw:
        text += _RAW
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
    elif format_ in COLUMN_FORMATS and "user" in keys:
        format_ = COLUMN_FORMATS[format_]
    allowed = [name for part in FIELDS[format_] for name in part]
    unknown = [name for name in keys if name not in allowed]
    if unknown:
        listed = ", ".join(f"`{name}`" for name in unknown)
        raise _map_error(file, f"`map` has {listed}, no field of format `{Layout(format_).name}`", _map_help(format_))
    return format_, keys


def _aliased(format_: str, mapping: Mapping[str, str]) -> dict[str, str]:
    """`messages` and `conversations` are the same field under the names of two formats."""
    alias = {"messages": ("conversations", "messages"), "sharegpt": ("messages", "conversations")}.get(format_)
    if alias and alias[0] in mapping and alias[1] not in mapping:
        return {alias[1] if key == alias[0] else key: column for key, column in mapping.items()}
    return dict(mapping)


def _map_help(format_: str) -> str:
    required, optional = FIELDS[format_]
    if format_ in {"preference", "unpaired_preference"}:
        return (
            f"its fields are: {', '.join((*required, *optional))}; `user`, instead of `prompt`, makes a chat of texts"
        )
    if format_ == "columns":
        return "for instance `map: {user: question, assistant: answer}`; `system` may be added"
    return f"its fields are: {', '.join((*required, *optional))}"


def _map_error(file: str, message: str, hint: str) -> DataError:
    return DataError(problems=[Problem(code="D209", message=message, file=file, hint=hint)])


def _mapped(
    mapping: Mapping[str, str], sample: Sequence[Mapping[str, Any]], *, file: str, kind: RowKind | None
) -> Layout:
    """The layout a `map` without a format asks for: the one format that has all its keys."""
    preference = _mapped_preference(mapping, sample, kind)
    if preference is not None:
        return preference
    key = next((name for name in ("messages", "conversations") if name in mapping), None)
    if key is None and any(name in mapping for name in ("user", "assistant")):
        wanted = "messages" if "assistant" in mapping or kind in (None, "tokens") else _PREFERENCE[kind]
        return Layout(*_explicit(wanted, mapping, file=file))
    if key is not None:
        probe = Layout("messages", {"messages": mapping[key]})
        found = {name for row in sample for turn in turns(row, probe, "messages") for name in turn}
        sharegpt = "from" in found or (key == "conversations" and "role" not in found)
        return Layout(*_explicit("sharegpt" if sharegpt else "messages", mapping, file=file))
    fitting = [
        name
        for name in FORMATS
        if set(mapping) <= {*FIELDS[name][0], *FIELDS[name][1]} and set(mapping) & set(FIELDS[name][0])
    ]
    suiting = [name for name in fitting if (KINDS[name] == "tokens") == (kind in (None, "tokens"))]
    if fitting:
        return Layout((suiting or fitting)[0], dict(mapping))
    roles = ", ".join(ROLE_KEYS)
    known = "; ".join(f"{name}: {', '.join(FIELDS[name][0] + FIELDS[name][1])}" for name in FORMATS)
    raise _map_error(file, f"`map` keys {', '.join(mapping)} belong to no one format", f"roles: {roles}; {known}")


def _mapped_preference(
    mapping: Mapping[str, str], sample: Sequence[Mapping[str, Any]], kind: RowKind | None
) -> Layout | None:
    """A `map` of some columns of preferences, the others being called as they should be."""
    if kind == "tokens":
        return None
    for name in ("pair_columns", "rated_columns", "sharegpt_preference", "preference", "unpaired_preference"):
        layout = Layout(name, dict(mapping))
        required, optional = FIELDS[name]
        known = set(mapping) <= {*required, *optional} and ("user" in mapping) == (name in COLUMN_FORMATS.values())
        if known and 2 * sum(all(reaches(row, layout, part) for part in required) for row in sample) > len(sample):
            return layout
    return None


def _detect(sample: Sequence[Mapping[str, Any]], *, file: str, kind: RowKind | None) -> Layout:
    layouts = [Layout(name) for name in FORMATS]
    if _most(sample, _has_from, Layout("messages")):
        layouts.append(Layout("sharegpt", {"conversations": "messages"}))
    found = _suiting([layout for layout in layouts if _most(sample, fits, layout)], kind)
    if not found:
        # The right columns with wrong values: take the format, so that each bad row is named with its fault.
        found = _suiting([layout for layout in layouts[: len(FORMATS)] if _most(sample, has_columns, layout)], kind)
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


def _has_from(layout: Layout, row: Mapping[str, Any]) -> bool:
    """Whether `messages` are turns of `from` and `value`."""
    return any("from" in turn for turn in turns(row, layout, "messages"))


def _most(
    sample: Sequence[Mapping[str, Any]], test: Callable[[Layout, Mapping[str, Any]], bool], layout: Layout
) -> bool:
    return 2 * sum(test(layout, row) for row in sample) > len(sample)


def _suiting(found: list[Layout], kind: RowKind | None) -> list[Layout]:
    """Of the formats that fit, those the objective can use, if there are any; the more particular one first.

    A rating is no column to leave unused in silence: `prompt`, `completion` and `label` are no plain completions, and
    `conversations` before two answers no plain chats, unless `format` says so.
    """
    names = {layout.format for layout in found}
    if "unpaired_preference" in names:
        found = [layout for layout in found if layout.format != "prompt_completion"]
    if "sharegpt_preference" in names:
        found = [layout for layout in found if layout.format not in {"preference", "sharegpt"}]
    wanted: tuple[RowKind, ...] = (
        ("pairs", "rated") if kind is None else ("rated", "pairs") if kind == "rated" else (kind,)
    )
    for own in wanted:
        if suiting := [layout for layout in found if layout.kind == own]:
            return suiting
    return found


def _serves(layout: Layout, kind: RowKind) -> bool:
    """Whether an objective can train on the rows of a layout; pairs become rated answers."""
    return layout.kind == kind or (kind, layout.kind) == ("rated", "pairs")


def wrong_kind(layout: Layout, kind: RowKind, sample: Sequence[Mapping[str, Any]], *, file: str) -> DataError:
    """The rows are fine, but not for the objective: says which objective, or which format, would fit."""
    are = {"tokens": "single answers", "pairs": "pairs (chosen and rejected)", "rated": "rated answers (label)"}
    message = (
        f"the rows are {are[layout.kind]} (format {layout.name}); needed are {are[kind]}, as objective "
        f"{objectives_text(kind)} trains on"
    )
    hint = f"rows like these are for `objective.name: {objectives_text(layout.kind)}`"
    if kind != "tokens":
        formats = ", ".join(
            name for name in FORMATS if KINDS[name] == kind or (kind, KINDS[name]) == ("rated", "pairs")
        )
        hint += f"; objective {objectives_text(kind)} reads {formats}"
    elif suggestion := suggest_map(sample):
        hint += f"; to train on one column, `map: {yaml_map(suggestion)}`"
    if (layout.kind, kind) == ("rated", "tokens") and "completion" in layout.fields():
        hint += "; to train on every completion, good or not, `format: prompt_completion`"
    return DataError(problems=[Problem(code="D218", message=message, file=file, hint=hint)])


def _check_columns(layout: Layout, sample: Sequence[Mapping[str, Any]], *, file: str) -> None:
    """A required column that no row has, and a mapped column that no row has, are told once and not per row."""
    columns = sorted({str(column) for row in sample for column in row})
    asked = dict.fromkeys([*layout.required(), *layout.map])
    missing = [name for name in asked if not any(reaches(row, layout, name) for row in sample)]
    if missing:
        listed = ", ".join(f"`{layout.column(name)}`" for name in missing)
        there = ", ".join(columns) or "none"
        message = f"no column {listed} (format {layout.name}); columns found: {there}"
        suggestion = suggest_map(sample)
        hint = f"for instance `map: {yaml_map(suggestion)}`" if suggestion else None
        raise DataError(problems=[Problem(code="D209", message=message, file=file, hint=hint)])
