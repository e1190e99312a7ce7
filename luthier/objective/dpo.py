"""Direct preference optimisation and its relatives: losses of the gap between two log-ratios.

With r_w, r_l = log pi(y|x) - log pi_ref(y|x) of the chosen and the rejected answer, n_w, n_l their tokens and
d = beta (r_w - r_l) - margin:

    sigmoid       -log s(d)                            DPO, eq. 7 of arXiv:2305.18290; `margin`: ODPO, arXiv:2402.10571
      smoothed    -(1-e) log s(d) - e log s(-d)        conservative DPO, e = P(label is wrong), E. Mitchell,
                                                       "A note on DPO with noisy preferences" (2023)
    robust        (-(1-e) log s(d) + e log s(-d)) / (1 - 2e)        rDPO, arXiv:2403.00409
    hinge         max(0, 1 - d)                        SLiC on log-ratios, arXiv:2309.06657
    ipo           (r_w / n_w - r_l / n_l - 1 / (2 beta))^2          eq. 17 of arXiv:2310.12036, beta is its tau
    sigmoid_norm  -log s(beta (r_w / n_w - r_l / n_l))              length-normalised DPO, arXiv:2411.15124
    apo_zero      1 - s(beta r_w) + s(beta r_l)                     eq. 7 of arXiv:2408.06266
    apo_down      s(beta r_w) + 1 - s(beta (r_w - r_l))             eq. 8 of arXiv:2408.06266

    + rpo_alpha x (-log pi(y_w|x) / n_w)               arXiv:2404.19733

IPO's log-ratios are means over tokens here, as in TRL, whose authors have it from IPO's. TRL 1.16 smooths nothing
with `sigmoid` (its label_smoothing is for `robust` and EXO); here `sigmoid` with label_smoothing is conservative DPO,
as TRL had it before. TRL writes the last term as `loss_type: [sigmoid, sft]` and takes a mean over the tokens of a
micro-batch; here each row has the same weight, so that the split of a step changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from luthier.objective.base import PAIR_SUMS, Objective, Outcome, Scored, pair_report, pair_sums

__all__ = ["LOSS_TYPES", "Dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo(Objective):
    """DPO with one of the losses above."""

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    sums: ClassVar[tuple[str, ...]] = PAIR_SUMS
    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    rpo_alpha: float | None = None

    @property
    def takes_margins(self) -> bool:
        """Only the sigmoid loss has a margin."""
        return self.loss_type == "sigmoid"

    def __call__(self, scored: Scored) -> Outcome:
        """See the head of this file."""
        losses = LOSS_TYPES[self.loss_type](self, scored)
        if self.rpo_alpha is not None:
            losses = losses - self.rpo_alpha * scored.pair(scored.means)[0]
        rewards = self.beta * scored.log_ratios.detach()
        return Outcome(losses, pair_sums(scored, rewards=rewards, logps=scored.values))

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over rows; rewards are beta x log-ratio."""
        return pair_report(sums)


def _gap(self: Dpo, scored: Scored) -> Tensor:
    chosen, rejected = scored.pair(scored.log_ratios)
    return self.beta * (chosen - rejected)


def _gap_of_means(scored: Scored) -> Tensor:
    chosen, rejected = scored.pair(scored.log_ratios / scored.answers.lengths)
    return chosen - rejected


def _sigmoid(self: Dpo, scored: Scored) -> Tensor:
    gap, margins = _gap(self, scored), scored.answers.margins
    gap = gap if margins is None else gap - margins
    smoothing = self.label_smoothing
    return -(1.0 - smoothing) * logsigmoid(gap) - smoothing * logsigmoid(-gap)


def _robust(self: Dpo, scored: Scored) -> Tensor:
    gap, wrong = _gap(self, scored), self.label_smoothing
    return (-(1.0 - wrong) * logsigmoid(gap) + wrong * logsigmoid(-gap)) / (1.0 - 2.0 * wrong)


def _hinge(self: Dpo, scored: Scored) -> Tensor:
    return relu(1.0 - _gap(self, scored))


def _ipo(self: Dpo, scored: Scored) -> Tensor:
    return (_gap_of_means(scored) - 1.0 / (2.0 * self.beta)).square()


def _sigmoid_norm(self: Dpo, scored: Scored) -> Tensor:
    return -logsigmoid(self.beta * _gap_of_means(scored))


def _apo_zero(self: Dpo, scored: Scored) -> Tensor:
    chosen, rejected = scored.pair((self.beta * scored.log_ratios).sigmoid())
    return 1.0 - chosen + rejected


def _apo_down(self: Dpo, scored: Scored) -> Tensor:
    chosen, _ = scored.pair((self.beta * scored.log_ratios).sigmoid())
    return chosen + 1.0 - _gap(self, scored).sigmoid()


LOSS_TYPES: dict[str, Callable[[Dpo, Scored], Tensor]] = {
    "sigmoid": _sigmoid, "robust": _robust, "hinge": _hinge, "ipo": _ipo, "sigmoid_norm": _sigmoid_norm,
    "apo_zero": _apo_zero, "apo_down": _apo_down,
}  # fmt: skip
