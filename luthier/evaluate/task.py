"""A task with its rows, as every way of asking (a model here, an endpoint) takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.types import Conversation, RowRef
from luthier.evaluate.library import SecondaryMetric

__all__ = ["Task", "TaskRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One question."""

    ref: RowRef
    conversation: Conversation
    """The row as read; the reference is still in it."""
    messages: Sequence[Mapping[str, Any]]
    """Prompt: worked examples and all turns before the reference; empty for raw rows."""
    reference: str
    item: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the row as they stand in the file; only read for graders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to ask and how to score it."""

    name: str
    version: int
    """Of the task file; 0 for a task that only the recipe describes."""
    metric: str
    """A key of `METRICS`, `loss`, or `grader`."""
    pattern: str | None
    secondary: tuple[SecondaryMetric, ...]
    rows: tuple[TaskRow, ...]
    max_new_tokens: int
    num_fewshot: int
    fewshot_hash: str | None
    """Hash of the worked examples."""
    data_hash: str
    """Hash of the rows as read."""
    grader: Mapping[str, Any] | None = None
    """Of metric `grader`: the grader, as OpenAI writes it."""
    limit: int | None = None
    """`limit` of the recipe: most rows that were read."""
