"""Which kind of rows an objective trains on, and how large a pack of them is. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["OBJECTIVES", "RowKind", "objectives_text", "pack_capacity", "read_as", "row_kind"]

RowKind = Literal["tokens", "pairs", "rated", "prompts"]
"""tokens: one sequence a row. pairs: a prompt, a chosen and a rejected answer. rated: a prompt, an answer, a label.
prompts: what is asked, and perhaps a reference answer; nothing of the row is trained."""

OBJECTIVES: Mapping[RowKind, tuple[str, ...]] = {
    "tokens": ("sft",),
    "pairs": ("dpo", "orpo", "simpo", "reward"),
    "rated": ("kto",),
    "prompts": ("grpo",),
}
"""The values of `objective.name` that train on each kind of rows."""


def row_kind(objective: str) -> RowKind:
    """Kind of the rows that an objective (`objective.name`) trains on.

    Raises:
        ValueError: no such objective.
    """
    for kind, names in OBJECTIVES.items():
        if objective in names:
            return kind
    raise ValueError(f"unknown objective {objective!r}")


def read_as(kind: RowKind) -> RowKind:
    """The kind whose formats rows of this kind have in files: prompts are read from rows of tokens."""
    return "tokens" if kind == "prompts" else kind


def objectives_text(kind: RowKind) -> str:
    """The objectives of a kind as a message names them: `dpo, ipo or reward`."""
    *first, last = OBJECTIVES[kind]
    return f"{', '.join(first)} or {last}" if first else last


def pack_capacity(kind: RowKind, max_length: int) -> int:
    """Tokens that a pack holds.

    A pair holds its prompt once and two answers. `data.max_length` limits the prompt with the longer answer, so a pair
    has at most 2 max_length - 1 tokens: packs of 2 max_length hold every row that is kept. The number follows from the
    recipe alone, so that memory can be planned before the rows are read, and does not change with the rows.
    """
    return 2 * max_length if kind == "pairs" else max_length
