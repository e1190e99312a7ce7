"""Objectives over pairs that need no reference: ORPO and SimPO.

With a_w, a_l the log-probability a token of the chosen and the rejected answer:

    ORPO    -a_w - beta log s(log odds(a_w) - log odds(a_l)),  log odds(a) = a - log(1 - exp a)
            arXiv:2403.07691; beta is its lambda
    SimPO   -(1-e) log s(m) - e log s(-m),  m = beta (a_w - a_l) - simpo_gamma
            arXiv:2405.14734, smoothed as in TRL's CPOTrainer;
            + rpo_alpha x (-a_w): CPO-SimPO, `cpo_alpha` in TRL

Differences from TRL 1.16 (trl.experimental.orpo, .cpo). The NLL term: TRL takes a mean over all tokens of the chosen
sequences in a micro-batch, for ORPO with the prompt's among them; so its loss changes with the split of a step, and
prompts are trained. Here it is, as in the papers, the chosen answer's own mean, and each row has the same weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.objective.base import PAIR_SUMS, Objective, Outcome, Scored, pair_report, pair_sums

__all__ = ["Orpo", "Simpo", "log_odds"]

LARGEST = -1e-6
"""Log-probabilities above are taken as this: the odds of an answer that is certain have no finite value."""


def log_odds(log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0, without loss of digits at either end."""
    x = log_probs.clamp(max=LARGEST)
    near_one = x > -math.log(2.0)
    # Each branch sees only arguments it is made for: the gradient of the other must stay finite, too.
    high = torch.where(near_one, x, torch.full_like(x, -1.0)).expm1().neg().log()
    low = torch.where(near_one, torch.full_like(x, -1.0), x).exp().neg().log1p()
    return x - torch.where(near_one, high, low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orpo(Objective):
    """Odds-ratio preference optimisation: NLL of the chosen answer and a penalty on the odds of the other."""

    name: ClassVar[str] = "orpo"
    sums: ClassVar[tuple[str, ...]] = (*PAIR_SUMS, "log_odds_ratio", "log_odds_chosen")
    beta: float = 0.1

    def __call__(self, scored: Scored) -> Outcome:
        """See the head of this file."""
        means = scored.means
        chosen, rejected = scored.pair(log_odds(means))
        ratio = logsigmoid(chosen - rejected)
        losses = -scored.pair(means)[0] - self.beta * ratio
        sums = pair_sums(scored, rewards=self.beta * means.detach(), logps=means)
        sums["log_odds_ratio"] = ratio.detach().float().sum()
        sums["log_odds_chosen"] = (chosen - rejected).detach().float().sum()
        return Outcome(losses, sums)

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over rows; `logps` are a token's, rewards beta times them."""
        return pair_report(sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simpo(Objective):
    """Simple preference optimisation: log-probability a token as the reward, with a target margin."""

    name: ClassVar[str] = "simpo"
    sums: ClassVar[tuple[str, ...]] = PAIR_SUMS
    beta: float = 2.0
    simpo_gamma: float = 1.0
    """In units of reward: gamma of the paper, not gamma / beta."""
    label_smoothing: float = 0.0
    rpo_alpha: float | None = None

    def __call__(self, scored: Scored) -> Outcome:
        """See the head of this file."""
        chosen, rejected = scored.pair(scored.means)
        margin = self.beta * (chosen - rejected) - self.simpo_gamma
        losses = -(1.0 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
        if self.rpo_alpha is not None:
            losses = losses - self.rpo_alpha * chosen
        return Outcome(losses, pair_sums(scored, rewards=self.beta * scored.means.detach(), logps=scored.means))

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over rows; `logps` are a token's, rewards beta times them."""
        return pair_report(sums)
