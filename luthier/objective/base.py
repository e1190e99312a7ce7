"""What every preference objective is: a small function from numbers of answers to losses of rows.

    logps, lengths, reference (A,)   -> losses (N,)          A answers, N rows
    chosen, rejected          (N,)      sums of metrics      scalars, divided by their counts at the end

No model, no logits: the engine has summed the log-probabilities of each answer's tokens and differentiates the
losses with respect to those A numbers. The loss of a step is the mean over all its rows, so a micro-batch hands on
sums, and neither its size nor the number of processes moves the result.

Log-probabilities are natural logarithms, summed over the tokens of an answer that count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.data.batch import Answers

__all__ = ["Objective", "Outcome", "Scored", "pair_report", "pair_sums"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What an objective sees of a batch."""

    values: Tensor
    """(A,) fp32: summed log-probability of each answer; of a reward model the reward of each answer."""
    answers: Answers
    kl: float = 0.0
    """KTO's reference point z0, of the whole step; see `kto.py`."""

    @property
    def means(self) -> Tensor:
        """(A,) log-probability a token."""
        return self.values / self.answers.lengths

    @property
    def log_ratios(self) -> Tensor:
        """(A,) log pi(y|x) - log pi_ref(y|x).

        Raises:
            ValueError: the batch has no reference.
        """
        if self.answers.reference is None:
            raise ValueError("this objective needs log-probabilities under the reference, and the batch has none")
        return self.values - self.answers.reference

    def pair(self, of_answers: Tensor) -> tuple[Tensor, Tensor]:
        """(of the chosen, of the rejected answer), each (N,), from something of every answer (A,)."""
        return of_answers[self.answers.chosen], of_answers[self.answers.rejected]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Losses of the rows of one batch, and what is logged about them."""

    losses: Tensor
    """(N,), differentiable with respect to `Scored.values`."""
    sums: dict[str, Tensor]
    """Scalars without gradient, one for each of `Objective.sums`."""


class Objective(ABC):
    """One objective with its settings."""

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = False
    """Rows must come with `reference`."""
    needs_kl: ClassVar[bool] = False
    """Each step has a reference point, measured on mismatched answers before its gradients."""
    of_pairs: ClassVar[bool] = True
    """Rows are (chosen, rejected); else rated answers."""
    rewards_from_head: ClassVar[bool] = False
    """`values` come from a head of one output at the last token, not from log-probabilities."""
    sums: ClassVar[tuple[str, ...]]
    """Names of the sums of an `Outcome`, in a fixed order."""

    @property
    def takes_margins(self) -> bool:
        """Whether a row's `margin` is used."""
        return False

    @abstractmethod
    def __call__(self, scored: Scored) -> Outcome:
        """Losses (N,) and sums for one batch."""

    @abstractmethod
    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is logged, by TRL's names, from sums over a step (or over many steps)."""

    def none(self, like: Tensor) -> dict[str, Tensor]:
        """The sums of a batch that counts nothing."""
        return {name: torch.zeros((), dtype=torch.float32, device=like.device) for name in self.sums}


PAIR_SUMS = (
    "rows", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected", "nll_loss",
    "lengths/chosen", "lengths/rejected",
)  # fmt: skip


def pair_sums(scored: Scored, *, rewards: Tensor, logps: Tensor) -> dict[str, Tensor]:
    """`PAIR_SUMS` of a batch of pairs; `rewards` and `logps` (A,) as the objective defines them.

    A reward is right (`rewards/accuracies`) if that of the chosen answer is higher; equal ones are not. `nll_loss` is
    the mean over rows of the chosen answer's loss a token.
    """
    with torch.no_grad():
        chosen, rejected = scored.pair(rewards)
        parts = (
            torch.ones_like(chosen), chosen, rejected, (chosen > rejected).float(), *scored.pair(logps),
            -scored.pair(scored.means)[0], *scored.pair(scored.answers.lengths),
        )  # fmt: skip
        return dict(zip(PAIR_SUMS, (part.float().sum() for part in parts), strict=True))


def pair_report(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over rows, from `PAIR_SUMS` (and any more sums over rows)."""
    rows = max(sums["rows"], 1.0)
    found = {name: value / rows for name, value in sums.items() if name != "rows"}
    found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found
