"""Kahneman-Tversky optimisation: answers that are rated, each by itself.

With r = log pi(y|x) - log pi_ref(y|x) and s the logistic function (arXiv:2402.01306):

    desired      desirable_weight   x (1 - s(beta (r - z0)))
    undesired    undesirable_weight x (1 - s(beta (z0 - r)))

z0 = max(0, mean of log pi(y'|x) - log pi_ref(y'|x)) over the rows of the step, where y' is the answer of another row
of the same step: an estimate of KL(pi || pi_ref) without gradient. It is one number for the whole step, over all
micro-batches and processes, from a pass before the gradients; TRL takes one for each micro-batch, so its loss depends
on the split of a step. Answers are moved on by one row, as in TRL: (x1, y_n), (x2, y1), ..., (x_n, y_n-1); a step of
one row has no other row, and z0 is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.objective.base import Objective, Outcome, Scored

__all__ = ["Kto"]

_OF_KIND = ("rewards", "logps", "lengths")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kto(Objective):
    """KTO."""

    name: ClassVar[str] = "kto"
    needs_reference: ClassVar[bool] = True
    needs_kl: ClassVar[bool] = True
    of_pairs: ClassVar[bool] = False
    sums: ClassVar[tuple[str, ...]] = (
        "rows", "chosen", *(f"{what}/{kind}" for what in _OF_KIND for kind in ("chosen", "rejected")), "kl",
    )  # fmt: skip
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __call__(self, scored: Scored) -> Outcome:
        """See the head of this file.

        Raises:
            ValueError: the rows are not rated.
        """
        answers = scored.answers
        if answers.labels is None:
            raise ValueError("kto needs rated answers, and the batch has pairs")
        rows = answers.chosen
        ratios = scored.log_ratios[rows]
        desired = answers.labels > 0.5
        signed = torch.where(desired, ratios - scored.kl, scored.kl - ratios)
        weights = torch.where(desired, self.desirable_weight, self.undesirable_weight).to(ratios.dtype)
        losses = weights * (1.0 - (self.beta * signed).sigmoid())
        with torch.no_grad():
            kinds = (desired.float(), (~desired).float())
            values = (self.beta * ratios, scored.values[rows], answers.lengths[rows])
            parts = [(value * kind).sum() for value in values for kind in kinds]
            counted = torch.full((), float(len(rows)), device=ratios.device)
            sums = [counted, kinds[0].sum(), *parts, counted * scored.kl]
            return Outcome(losses, dict(zip(self.sums, (value.float() for value in sums), strict=True)))

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over the answers of each kind; what there is none of is left out, and so is the margin then."""
        counts = {"chosen": sums["chosen"], "rejected": sums["rows"] - sums["chosen"]}
        found = {
            f"{what}/{kind}": sums[f"{what}/{kind}"] / count
            for what in _OF_KIND
            for kind, count in counts.items()
            if count > 0.0
        }
        if all(count > 0.0 for count in counts.values()):
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return {**found, "kl": sums["kl"] / max(sums["rows"], 1.0)}
