"""A row in any of the known formats -> `Conversation`, the one normal form.

One function a format, found in `_READERS`. They check everything, coerce nothing, and tell
apart what is wrong (a fault) from what is well-formed but has nothing to train on (empty, or a pair of equal answers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.data.chats import read_alpaca, read_columns, read_openai, read_sharegpt
from luthier.data.fields import Fields
from luthier.data.layout import Layout
from luthier.data.messages import Findings, Path
from luthier.data.preferences import (
    read_openai_pair,
    read_pair,
    read_pair_columns,
    read_rated,
    read_rated_columns,
    read_sharegpt_pair,
)
from luthier.data.raw import read_prompt_completion, read_segments, read_text
from luthier.data.rows import Row, row_problem
from luthier.data.strict_json import locate
from luthier.data.types import Conversation, RowRef
from luthier.runtime.errors import Problem

__all__ = ["Empty", "normalise", "path_text"]


@dataclass(frozen=True, slots=True)
class Empty:
    """A well-formed row with nothing to train on."""

    ref: RowRef
    detail: str
    problem: Problem
    conversation: Conversation
    """The row all the same: a prompt without an answer can still be asked."""
    reason: Literal["empty", "equal"] = "empty"


def normalise(
    row: Row, layout: Layout, *, system: str | None = None, loss_on: str = "assistant"
) -> Conversation | Empty | list[Problem]:
    """Read one row.

    Args:
        row: Row of a file.
        layout: Format, and which column is what.
        system: Put in front of chat rows that have no system message.
        loss_on: As in the recipe; decides which turns must not be empty.

    Returns:
        The conversation; or `Empty`; or everything that is wrong with the row.
    """
    findings = Findings()
    conversation = _READERS[layout.format](Fields(row, layout, findings), system, loss_on)
    if findings.faults:
        return [_problem(row, path, message, code) for path, message, code in findings.faults]
    if findings.empty:
        path, message = findings.empty
        detail = f"{path_text(path)}: {message}" if path else message
        hint = "`data.on_empty: drop` leaves such rows out, counted"
        return Empty(row.ref, detail, _problem(row, path, message, "D201", hint=hint), conversation)
    if findings.equal:
        hint = "mend the row; `data.on_empty: drop` leaves such rows out, counted"
        problem = _problem(row, (), findings.equal, "D219", hint=hint)
        return Empty(row.ref, findings.equal, problem, conversation, "equal")
    return conversation


def path_text(path: Path) -> str:
    """`("messages", 1, "content")` as `messages[1].content`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _problem(row: Row, path: Path, message: str, code: str, *, hint: str | None = None) -> Problem:
    offset = locate(row.text, path) if row.text is not None else None
    place = f"{path_text(path)}: " if path else ""
    column = None if offset is None else offset + 1
    return row_problem(code, place + message, row.ref, text=row.text, column=column, hint=hint)


_READERS: Mapping[str, Callable[[Fields, str | None, str], Conversation]] = {
    "messages": read_openai,
    "columns": read_columns,
    "sharegpt": read_sharegpt,
    "alpaca": read_alpaca,
    "prompt_completion": read_prompt_completion,
    "text": read_text,
    "segments": read_segments,
    "preference": read_pair,
    "pair_columns": read_pair_columns,
    "openai_preference": read_openai_pair,
    "sharegpt_preference": read_sharegpt_pair,
    "unpaired_preference": read_rated,
    "rated_columns": read_rated_columns,
}
