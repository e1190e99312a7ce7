"""One row as a prompt to be answered: what is asked, the reference answer, the columns beside it.

The last assistant message of a row is its reference and is taken away; what stands before it is the prompt, rendered
by the same template and encoded by the same rules as a served prompt (`ChatTemplate.prompt_ids`). Raw rows
(`prompt_completion`) keep their raw prompt. A row may end with a question and have no reference.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.row_plan import raw_prompt_ids
from luthier.data.rows import show_value
from luthier.data.template import ChatTemplate
from luthier.data.types import Conversation, Dropped, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError

__all__ = ["ARGUMENTS", "Check", "PromptRow", "Wanted", "read_prompt"]

ARGUMENTS = ("prompts", "completions", "completion_ids", "prompt", "completion", "reference", "trainer_state",
             "log_extra", "log_metric", "environments")  # fmt: skip
"""Names that reward functions are called with; a column of the data with such a name is not passed on."""

Check = Callable[[str | None], str | None]
"""What makes a reference (None: there is none) unusable, in words; None when it is fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """One prompt."""

    ref: RowRef
    ids: Sequence[int]
    """Token ids, up to where the answer begins."""
    prompt: Sequence[Mapping[str, Any]] | str
    """Messages, or raw text."""
    reference: str | None
    columns: Mapping[str, Any]
    """The other columns of the row, as they stand in the file; empty unless asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of every row."""

    section: DataSection
    template: ChatTemplate
    reference_column: str | None
    check: Check
    columns: bool
    longest: int
    """Most tokens of a prompt."""
    why_longest: str


def read_prompt(row: Conversation, raw: Mapping[str, Any], wanted: Wanted) -> PromptRow | Dropped:
    """One row as a prompt, or why it is left out.

    Raises:
        DataError: it cannot be asked.
    """
    prompt, reference = _split(row)
    if wanted.reference_column is not None:
        reference = _reference(raw, wanted.reference_column)
    fault = wanted.check(reference)
    if fault is not None:
        return Dropped(row.ref, "empty", fault)
    ids = raw_prompt_ids(prompt, wanted.template) if isinstance(prompt, str) else wanted.template.prompt_ids(prompt)
    if not ids:
        raise DataError(code="D250", message="the prompt has no tokens")
    if len(ids) > wanted.longest:
        return Dropped(row.ref, "overlong", f"{len(ids)} tokens; at most {wanted.longest}: {wanted.why_longest}")
    columns = {name: value for name, value in raw.items() if name not in ARGUMENTS} if wanted.columns else {}
    return PromptRow(ref=row.ref, ids=array("i", ids), prompt=prompt, reference=reference, columns=columns)


def _split(row: Conversation) -> tuple[Sequence[Mapping[str, Any]] | str, str | None]:
    """(prompt, reference) of a row.

    Raises:
        DataError: there is no question in it.
    """
    if row.kind == "prompt_completion":
        return row.prompt, row.completion or None
    if row.kind != "chat":
        raise DataError(code="D250", message=f"rows of `{row.kind}` have no question that could be asked")
    if row.tools:
        message = "the row offers tools; completions of online RL are plain answers, no tool is called"
        raise DataError(code="D250", message=message, hint="take `tools` out of the row")
    messages = [dict(message) for message in row.messages]
    reference: str | None = None
    if messages and messages[-1]["role"] == "assistant":
        content = messages.pop().get("content")
        reference = content if isinstance(content, str) and content.strip() else None
    if not messages or messages[-1]["role"] == "assistant":
        raise DataError(code="D250", message="nothing is asked before the last assistant message")
    return messages, reference


def _reference(raw: Mapping[str, Any], column: str) -> str | None:
    value = raw.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    message = f"column `{column}` (objective.grpo.reference_column) must hold text or a number, got {show_value(value)}"
    raise DataError(code="D251", message=message)
