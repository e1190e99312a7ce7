"""What a row looks like: a format, and which column plays which part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.recipe.objective_kind import RowKind

__all__ = ["COLUMN_FORMATS", "FIELDS", "FORMATS", "KINDS", "ROLE_KEYS", "Layout"]

FIELDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("tools", "functions", "system")),
    "sharegpt": (("conversations",), ("tools", "system")),
    "alpaca": (("instruction", "output"), ("input", "system", "history", "tools")),
    "prompt_completion": (("prompt", "completion"), ("tools",)),
    "text": (("text",), ()),
    "segments": (("segments",), ()),
    "preference": (("chosen", "rejected"), ("prompt", "tools", "margin")),
    "openai_preference": (("input", "preferred_output", "non_preferred_output"), ("margin",)),
    "sharegpt_preference": (("conversations", "chosen", "rejected"), ("system", "tools", "margin")),
    "unpaired_preference": (("completion", "label"), ("prompt", "tools")),
    "columns": (("user", "assistant"), ("system", "developer", "tools")),
    "pair_columns": (("user", "chosen", "rejected"), ("system", "developer", "tools", "margin")),
    "rated_columns": (("user", "completion", "label"), ("system", "developer", "tools")),
}
"""Per format: the columns a row must have, and those it may have. `columns`, `pair_columns` and `rated_columns` are
what a `map` with `user` makes of `messages`, `preference` and `unpaired_preference`: a chat of single columns."""

COLUMN_FORMATS: Mapping[str, str] = {
    "messages": "columns",
    "preference": "pair_columns",
    "unpaired_preference": "rated_columns",
}
"""Formats that single columns can make, when `map` names their roles."""
FORMATS = tuple(name for name in FIELDS if name not in COLUMN_FORMATS.values())
KINDS: Mapping[str, RowKind] = {
    **dict.fromkeys(FIELDS, "tokens"),
    **dict.fromkeys(("preference", "openai_preference", "sharegpt_preference", "pair_columns"), "pairs"),
    **dict.fromkeys(("unpaired_preference", "rated_columns"), "rated"),
}
"""Kind of rows that each format gives."""
ROLE_KEYS = ("system", "developer", "user", "assistant")
"""Keys of `map` that make a conversation out of single columns."""

_STRUCTURED = {
    "messages", "conversations", "segments", "history", "tools", "functions", "input", "preferred_output",
    "non_preferred_output", "label", "margin",
}  # fmt: skip
_EITHER = {"prompt", "completion", "chosen", "rejected"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Format of the rows of a source; `map` names the columns that are not called as their field."""

    format: str
    map: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The format as a recipe calls it."""
        return next((name for name, own in COLUMN_FORMATS.items() if own == self.format), self.format)

    @property
    def kind(self) -> RowKind:
        """What its rows are."""
        return KINDS[self.format]

    def column(self, name: str) -> str:
        """Column that holds a field."""
        return self.map.get(name, name)

    def path_in(self, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
        """Keys that lead to a field: the column of that very name, else the dotted path through nested objects."""
        column = self.column(name)
        return (column,) if column in row else tuple(column.split("."))

    def fields(self) -> tuple[str, ...]:
        """Fields this layout reads: those of the format; for mapped roles only what the map names."""
        required, optional = FIELDS[self.format]
        if self.format in COLUMN_FORMATS.values():
            always = {*required, "tools", "margin"} if self.kind != "tokens" else {"tools"}
            return tuple(name for name in (*required, *optional) if name in self.map or name in always)
        # A `system` column beside OpenAI messages is no part of that format: it is read only when it is mapped.
        return tuple(
            name
            for name in (*required, *optional)
            if name != "system" or self.format != "messages" or "system" in self.map
        )

    def has_field(self, name: str) -> bool:
        """Whether a field is read."""
        return name in self.fields()

    def required(self) -> tuple[str, ...]:
        """Fields every row must have."""
        return FIELDS[self.format][0]

    def holds_text(self, name: str) -> bool:
        """Whether a field is a string (and not a list of something)."""
        if self.format == "alpaca" and name == "input":
            return True
        return name not in _STRUCTURED

    def may_hold_messages(self, name: str) -> bool:
        """Whether a field is a string or a list of messages, as the row has it."""
        return name in _EITHER and (self.format == "prompt_completion" or self.kind != "tokens")

    def used(self, columns: Sequence[str]) -> set[str]:
        """Which of the columns are read."""
        wanted = {self.column(name) for name in self.fields()}
        return {name for name in columns if name in wanted or any(want.startswith(f"{name}.") for want in wanted)}
