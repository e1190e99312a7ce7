"""Contract: each objective is the formula of its paper, row by row; its gradient is the formula's; no row sees another.

Planted and seen to fail: the sign of the margin; beta applied twice; sums where means belong (IPO, ORPO, SimPO);
smoothing on the wrong side; KTO's weights swapped; the odds of the probability instead of its logarithm.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from luthier.data.batch import Answers
from luthier.objective.base import Objective, Scored
from luthier.objective.dpo import LOSS_TYPES, Dpo
from luthier.objective.kto import Kto
from luthier.objective.reference_free import Orpo, Simpo, log_odds
from luthier.objective.reward import Reward

VALUES = [-12.0, -15.5, -7.25, -3.0, -40.0, -38.5]
REFERENCE = [-13.0, -15.0, -7.0, -4.5, -41.0, -41.0]
LENGTHS = [4.0, 6.0, 3.0, 2.0, 11.0, 9.0]
PAIRS = [(0, 1), (2, 3), (4, 5)]


def sigma(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def nls(x: float) -> float:
    """-log sigma(x)."""
    return -math.log(sigma(x))


def scored(values=VALUES, *, margins=None, labels=None, kl=0.0, rows=PAIRS) -> Scored:
    answers = Answers(
        of_target=torch.arange(len(values)), lengths=torch.tensor(LENGTHS, dtype=torch.float64),
        last_index=torch.arange(len(values)), chosen=torch.tensor([a for a, _ in rows]),
        rejected=torch.tensor([b for _, b in rows]),
        labels=None if labels is None else torch.tensor(labels),
        margins=None if margins is None else torch.tensor(margins, dtype=torch.float64),
        reference=torch.tensor(REFERENCE, dtype=torch.float64),
    )  # fmt: skip
    return Scored(values=torch.tensor(values, dtype=torch.float64, requires_grad=True), answers=answers, kl=kl)


def by_hand(formula) -> list[float]:
    """formula(chosen, rejected) for each pair; both have value v, log-ratio r, tokens n and mean a."""

    class Side:
        def __init__(self, index):
            self.v, self.n = VALUES[index], LENGTHS[index]
            self.r, self.a = VALUES[index] - REFERENCE[index], VALUES[index] / LENGTHS[index]

    return [formula(Side(a), Side(b)) for a, b in PAIRS]


B = 0.3
CASES = {
    "sigmoid": (Dpo(beta=B), lambda w, x: nls(B * (w.r - x.r))),
    "conservative": (
        Dpo(beta=B, label_smoothing=0.2), lambda w, x: 0.8 * nls(B * (w.r - x.r)) + 0.2 * nls(-B * (w.r - x.r))
    ),
    "robust": (
        Dpo(beta=B, loss_type="robust", label_smoothing=0.2),
        lambda w, x: (0.8 * nls(B * (w.r - x.r)) - 0.2 * nls(-B * (w.r - x.r))) / 0.6,
    ),
    "hinge": (Dpo(beta=B, loss_type="hinge"), lambda w, x: max(0.0, 1.0 - B * (w.r - x.r))),
    "ipo": (Dpo(beta=B, loss_type="ipo"), lambda w, x: (w.r / w.n - x.r / x.n - 1.0 / (2.0 * B)) ** 2),
    "sigmoid_norm": (Dpo(beta=B, loss_type="sigmoid_norm"), lambda w, x: nls(B * (w.r / w.n - x.r / x.n))),
    "apo_zero": (Dpo(beta=B, loss_type="apo_zero"), lambda w, x: 1.0 - sigma(B * w.r) + sigma(B * x.r)),
    "apo_down": (Dpo(beta=B, loss_type="apo_down"), lambda w, x: sigma(B * w.r) + 1.0 - sigma(B * (w.r - x.r))),
    "rpo": (Dpo(beta=B, rpo_alpha=0.7), lambda w, x: nls(B * (w.r - x.r)) - 0.7 * w.v / w.n),
    "orpo": (
        Orpo(beta=B),
        lambda w, x: -w.a + B * nls(math.log(math.exp(w.a) / (1 - math.exp(w.a)))
                                    - math.log(math.exp(x.a) / (1 - math.exp(x.a)))),
    ),
    "simpo": (Simpo(beta=2.5, simpo_gamma=1.4), lambda w, x: nls(2.5 * w.a - 2.5 * x.a - 1.4)),
    "simpo smoothed": (
        Simpo(beta=2.5, simpo_gamma=1.4, label_smoothing=0.1, rpo_alpha=0.3),
        lambda w, x: 0.9 * nls(2.5 * (w.a - x.a) - 1.4) + 0.1 * nls(1.4 - 2.5 * (w.a - x.a)) - 0.3 * w.a,
    ),
    "reward": (Reward(), lambda w, x: nls(w.v - x.v)),
    "reward centred": (Reward(center_rewards_coefficient=0.01), lambda w, x: nls(w.v - x.v) + 0.01 * (w.v + x.v) ** 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_formula(name):
    objective, formula = CASES[name]
    assert objective(scored()).losses.tolist() == pytest.approx(by_hand(formula), rel=1e-9)


@pytest.mark.parametrize("name", [*CASES, "kto"])
def test_the_gradient_is_that_of_the_losses(name):
    objective = Kto() if name == "kto" else CASES[name][0]
    base = scored(labels=[1.0, 0.0, 1.0] if name == "kto" else None, kl=0.3 if name == "kto" else 0.0)

    def losses(values):
        return objective(replace(base, values=values)).losses

    assert torch.autograd.gradcheck(losses, (base.values,))


@pytest.mark.parametrize("name", [name for name in CASES if name != "apo_down"])
def test_a_better_chosen_and_a_worse_rejected_answer_lower_the_loss(name):
    """The signs. (apo_down wants the chosen answer down as well.)"""
    found = scored()
    (gradient,) = torch.autograd.grad(CASES[name][0](found).losses.sum(), found.values)
    chosen, rejected = gradient[[a for a, _ in PAIRS]], gradient[[b for _, b in PAIRS]]
    if name in ("ipo", "reward centred"):  # they have a target, and may be beyond it
        return
    assert bool((chosen <= 0).all())
    assert bool((rejected >= 0).all())
    assert bool((gradient != 0).any())


def test_at_the_reference_dpo_is_log_2_whatever_beta_and_smoothing():
    for objective in (Dpo(), Dpo(beta=0.9), Dpo(label_smoothing=0.3)):
        assert objective(scored(REFERENCE)).losses.tolist() == pytest.approx([math.log(2.0)] * 3, rel=1e-12)
    assert Dpo(loss_type="ipo", beta=0.5)(scored(REFERENCE)).losses.tolist() == pytest.approx([1.0] * 3)


def test_a_margin_is_taken_from_the_gap_of_rewards():
    margins = [0.5, 0.0, 2.0]
    dpo, reward = (
        objective(scored(margins=margins)).losses.tolist() for objective in (Dpo(beta=B), Reward())
    )  # fmt: skip
    assert dpo == pytest.approx(
        [
            nls(B * ((VALUES[a] - REFERENCE[a]) - (VALUES[b] - REFERENCE[b])) - m)
            for (a, b), m in zip(PAIRS, margins, strict=True)
        ]
    )
    assert reward == pytest.approx([nls(VALUES[a] - VALUES[b] - m) for (a, b), m in zip(PAIRS, margins, strict=True)])
    taking = {name for name in LOSS_TYPES if Dpo(loss_type=name).takes_margins}
    assert taking == {"sigmoid"}
    assert Reward().takes_margins
    assert not Orpo().takes_margins


def test_swapping_a_pair_negates_its_margin():
    straight, swapped = (
        Dpo(beta=B).report({k: float(v) for k, v in Dpo(beta=B)(scored(rows=rows)).sums.items()})
        for rows in (PAIRS, [(b, a) for a, b in PAIRS])
    )
    assert straight["rewards/margins"] == pytest.approx(-swapped["rewards/margins"], abs=1e-6)
    assert straight["rewards/accuracies"] == pytest.approx(1.0 - swapped["rewards/accuracies"])


@pytest.mark.parametrize("kl", [0.0, 0.8])
def test_kto_by_hand(kl):
    objective = Kto(beta=B, desirable_weight=1.5, undesirable_weight=0.5)
    rows = [(0, 0), (1, 1), (2, 2)]
    found = objective(scored(labels=[1.0, 0.0, 1.0], kl=kl, rows=rows))
    ratios = [VALUES[i] - REFERENCE[i] for i in range(3)]
    expected = [
        1.5 * (1 - sigma(B * (ratios[0] - kl))), 0.5 * (1 - sigma(B * (kl - ratios[1]))),
        1.5 * (1 - sigma(B * (ratios[2] - kl))),
    ]  # fmt: skip
    assert found.losses.tolist() == pytest.approx(expected)
    logged = objective.report({name: float(value) for name, value in found.sums.items()})
    assert logged["rewards/chosen"] == pytest.approx(B * (ratios[0] + ratios[2]) / 2)
    assert logged["rewards/rejected"] == pytest.approx(B * ratios[1])
    assert logged["kl"] == pytest.approx(kl)


def test_kto_without_a_kind_logs_nothing_of_it():
    found = Kto()(scored(labels=[1.0, 1.0, 1.0], rows=[(0, 0), (1, 1), (2, 2)]))
    logged = Kto().report({name: float(value) for name, value in found.sums.items()})
    assert "rewards/rejected" not in logged
    assert "rewards/margins" not in logged
    assert logged["rewards/chosen"]


def test_log_odds_keep_their_digits_at_both_ends():
    near_one, near_zero = torch.tensor([-1e-5], dtype=torch.float64), torch.tensor([-50.0], dtype=torch.float64)
    assert float(log_odds(near_one)) == pytest.approx(-1e-5 - math.log(-math.expm1(-1e-5)), rel=1e-12)
    assert float(log_odds(near_zero)) == pytest.approx(-50.0, rel=1e-12)
    certain = torch.zeros(1, requires_grad=True)
    value = log_odds(certain)
    value.backward()
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(certain.grad).all())


@pytest.mark.parametrize("name", CASES)
def test_sums_of_two_halves_are_those_of_the_whole(name):
    objective: Objective = CASES[name][0]
    whole = objective(scored())
    halves = [objective(scored(rows=rows)) for rows in (PAIRS[:1], PAIRS[1:])]
    assert tuple(whole.sums) == objective.sums
    for key, value in whole.sums.items():
        assert float(value) == pytest.approx(sum(float(half.sums[key]) for half in halves), rel=1e-6)
    apart = sum(float(half.losses.sum().detach()) for half in halves)
    assert float(whole.losses.sum().detach()) == pytest.approx(apart)


def test_what_is_logged_has_trl_s_names():
    logged = Dpo(beta=B).report({k: float(v) for k, v in Dpo(beta=B)(scored()).sums.items()})
    ratios = [v - r for v, r in zip(VALUES, REFERENCE, strict=True)]
    assert logged["rewards/chosen"] == pytest.approx(B * (ratios[0] + ratios[2] + ratios[4]) / 3, rel=1e-6)
    assert logged["rewards/margins"] == pytest.approx(logged["rewards/chosen"] - logged["rewards/rejected"])
    assert logged["rewards/accuracies"] == pytest.approx(sum(ratios[a] > ratios[b] for a, b in PAIRS) / 3)
    assert logged["logps/chosen"] == pytest.approx((VALUES[0] + VALUES[2] + VALUES[4]) / 3, rel=1e-6)
    assert logged["nll_loss"] == pytest.approx(-sum(VALUES[a] / LENGTHS[a] for a, _ in PAIRS) / 3, rel=1e-6)
    assert logged["lengths/chosen"] == pytest.approx(6.0)


def test_an_objective_that_needs_a_reference_says_so():
    found = scored()
    with pytest.raises(ValueError, match="reference"):
        Dpo()(replace(found, answers=replace(found.answers, reference=None)))
    with pytest.raises(ValueError, match="rated"):
        Kto()(found)
