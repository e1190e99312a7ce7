"""What a reward is given, and what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.data.prompt_rows import PromptRow

__all__ = ["Completions", "Reward", "Value", "one_answer"]

Value = float | None
"""None: this reward says nothing about this completion (only rewards of the user's own do that)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Completions to be scored; every sequence has one entry for each of them."""

    prompts: Sequence[Sequence[Mapping[str, Any]] | str]
    """Messages, or raw text."""
    texts: Sequence[str]
    """Without control tokens."""
    ids: Sequence[Sequence[int]]
    """Token ids as sampled, the stop token included."""
    references: Sequence[str | None]
    columns: Sequence[Mapping[str, Any]]
    """The row's other columns."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What TRL passes to every reward: `trainer_state`, `log_extra`, `log_metric`."""

    def __len__(self) -> int:
        return len(self.texts)


def one_answer(row: PromptRow) -> Completions:
    """A row whose reference stands for a completion: to try a reward on."""
    return Completions(
        prompts=[row.prompt], texts=[row.reference or "an answer"], ids=[[0]], references=[row.reference],
        columns=[row.columns],
        extra={"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None},
    )  # fmt: skip


class Reward(Protocol):
    """One reward of a recipe."""

    @property
    def label(self) -> str:
        """Name in metrics."""
        ...

    @property
    def weight(self) -> float:
        """Factor in the sum."""
        ...

    def unusable(self, reference: str | None) -> str | None:
        """What makes a reference unusable, in words; None when it is fine, or when none is needed."""
        ...

    def score(self, batch: Completions) -> list[Value]:
        """A number for each completion.

        Raises:
            LuthierError: it cannot be scored; never a number that stands for a failure.
        """
        ...
