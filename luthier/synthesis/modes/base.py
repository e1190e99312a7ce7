"""What a mode is, and what the modes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.data.sources import read_conversations
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, Problem
from luthier.synthesis.asking import Ask, Candidate, Driver, Failure, Got, Made, Rejected, provenance_of

__all__ = ["Mode", "Prompt", "as_row", "candidate", "first_prompts", "flat", "not_kept", "rejected"]


class Mode(Protocol):
    """A source of rows, read and ready."""

    @property
    def total(self) -> int:
        """Works at most, for the progress bar."""
        ...

    def first(self) -> Ask:
        """The first request, to be shown."""
        ...

    def requests(self) -> tuple[int, int]:
        """Requests without repairs: fewest and most."""
        ...

    def produce(self, driver: Driver, on_done: Callable[[list[Made]], None]) -> list[Made]:
        """Have everything asked.

        Raises:
            Interrupted: a signal came.
            LuthierError: the model cannot be asked.
        """
        ...

    def report(self) -> dict[str, Any]:
        """What the summary says of this mode alone."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a file."""

    ref: RowRef
    text: str


def first_prompts(source: Source, *, section: str) -> list[Prompt]:
    """First user message of each row (of raw rows the prompt).

    Raises:
        DataError: rows that cannot be read, or that ask nothing. All are told.
    """
    prompts, problems = [], []
    for row in read_conversations(source, 0, on_empty="keep").conversations:
        text = _asked(row)
        if text is None or not text.strip():
            message = f"the row has no prompt for `{section}`: no user message of text"
            hint = "name the column: map: {user: COLUMN}"
            problems.append(Problem(code="D276", message=message, file=row.ref.file, line=row.ref.line, hint=hint))
        else:
            prompts.append(Prompt(row.ref, text))
    if problems:
        raise DataError(problems=problems)
    return prompts


def _asked(row: Conversation) -> str | None:
    if row.kind == "chat":
        said = next((message.get("content") for message in row.messages if message.get("role") == "user"), None)
        return said if isinstance(said, str) else None
    return row.prompt if row.kind == "prompt_completion" else row.text if row.kind == "text" else None


def as_row(system: str | None, user: str, answer: str | None) -> dict[str, Any]:
    """`messages` in OpenAI's format."""
    turns = [("system", system), ("user", user), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns if text is not None]}


def rejected(item: str, failure: Failure, ask: Ask, source: Mapping[str, Any]) -> Rejected:
    """An answer that cannot be used, as a line of the rejected."""
    return Rejected(
        item=item, outcome=failure.outcome, detail=failure.detail, said=failure.got.text,
        provenance=provenance_of(ask, failure.got, **source),
    )  # fmt: skip


def candidate(item: str, value: Mapping[str, Any], ask: Ask, got: Got, source: Mapping[str, Any]) -> Candidate:
    """A row, with where it came from."""
    return Candidate(item=item, value=value, provenance=provenance_of(ask, got, **source))


def not_kept(one: Candidate, why: str) -> Rejected:
    """A row that is good, and not wanted."""
    return Rejected(item=one.item, outcome="not_kept", detail=why, value=one.value, provenance=one.provenance)


def flat(results: Sequence[list[Made]]) -> list[Made]:
    """All that was made, in order."""
    return [made for result in results for made in result]
