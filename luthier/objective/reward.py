"""A reward model from pairs: Bradley-Terry.

With v_w, v_l the rewards of the chosen and the rejected answer:

    -log s(v_w - v_l - margin) + center_rewards_coefficient x (v_w + v_l)^2

Ouyang et al., arXiv:2203.02155; the margin as in Llama 2, arXiv:2307.09288; the second term keeps rewards around
zero, arXiv:2312.09244. As TRL's RewardTrainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from luthier.objective.base import Objective, Outcome, Scored

__all__ = ["Reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward(Objective):
    """Bradley-Terry reward model."""

    name: ClassVar[str] = "reward"
    rewards_from_head: ClassVar[bool] = True
    sums: ClassVar[tuple[str, ...]] = (
        "rows", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "lengths/chosen", "lengths/rejected",
    )  # fmt: skip
    center_rewards_coefficient: float | None = None

    @property
    def takes_margins(self) -> bool:
        """Yes."""
        return True

    def __call__(self, scored: Scored) -> Outcome:
        """See the head of this file."""
        chosen, rejected = scored.pair(scored.values)
        gap = chosen - rejected
        margins = scored.answers.margins
        losses = -logsigmoid(gap if margins is None else gap - margins)
        if self.center_rewards_coefficient is not None:
            losses = losses + self.center_rewards_coefficient * (chosen + rejected).square()
        right = (chosen > rejected).float()
        lengths = scored.pair(scored.answers.lengths)
        parts = (right.new_ones(right.shape), chosen, rejected, right, *lengths)
        return Outcome(losses, {
            name: part.detach().float().sum() for name, part in zip(self.sums, parts, strict=True)
        })  # fmt: skip

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over rows; `mean_reward` is that of both answers."""
        rows = max(sums["rows"], 1.0)
        found = {name: value / rows for name, value in sums.items() if name != "rows"}
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        found["mean_reward"] = (found["rewards/chosen"] + found["rewards/rejected"]) / 2.0
        return found
