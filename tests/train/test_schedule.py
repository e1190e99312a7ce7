"""Contract: the rate of every step is the closed formula in `schedule.py`, to 1e-12."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.recipe.schema import TrainSection
from luthier.train.schedule import Schedule, warmup_steps

BASE, TOTAL = 3e-4, 20


def schedule(name: str, warmup: int, total: int = TOTAL) -> Schedule:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    return Schedule(optimizer, name=name, warmup=warmup, total_steps=total)


def formula(name: str, step: int, warmup: int, total: int = TOTAL) -> float:
    if name == "constant":
        return BASE
    if step < warmup:
        return BASE * step / warmup
    x = (step - warmup) / max(1, total - warmup)
    return {
        "constant_with_warmup": lambda: BASE,
        "linear": lambda: BASE * (1 - x),
        "cosine": lambda: BASE * (1 + math.cos(math.pi * x)) / 2,
        "polynomial": lambda: (BASE - 1e-7) * (1 - x) + 1e-7,
        "inverse_sqrt": lambda: BASE / math.sqrt((step + (warmup or 10_000) - warmup) / (warmup or 10_000)),
    }[name]()


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_rate_of_every_step_is_the_formula(name, warmup):
    subject = schedule(name, warmup)
    for step in range(TOTAL):
        assert subject.set(step) == pytest.approx(formula(name, step, warmup), rel=0, abs=1e-12)


def test_no_warmup_starts_at_the_full_rate():
    assert schedule("cosine", 0).rate(0) == BASE


def test_the_rate_after_the_last_step_is_the_floor():
    assert schedule("cosine", 3).rate(TOTAL) == pytest.approx(0.0, abs=1e-18)
    assert schedule("linear", 3).rate(TOTAL) == 0.0


def test_set_reaches_every_group_in_any_order():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=BASE)
    subject = Schedule(optimizer, name="cosine", warmup=2, total_steps=TOTAL)
    late = subject.set(15)
    subject.set(3)
    assert subject.set(15) == late
    assert [group["lr"] for group in optimizer.param_groups] == [late, late]


def test_warmup_zero_is_zero_and_the_ratio_is_rounded_up():
    assert warmup_steps(TrainSection(warmup_steps=0, warmup_ratio=0.5), 100) == 0
    assert warmup_steps(TrainSection(warmup_ratio=0.03), 100) == 3
    assert warmup_steps(TrainSection(warmup_ratio=0.03), 101) == 4
    assert warmup_steps(TrainSection(warmup_ratio=0.0), 100) == 0


def test_the_rates_of_a_range_test_rise_by_one_factor_and_groups_keep_their_ratio():
    from luthier.train.schedule import Rising

    one, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [one]}, {"params": [other], "lr": 4e-6}], lr=1e-6)
    schedule = Rising(optimizer, rise=1e6, steps=7)
    assert [schedule.set(step) for step in range(7)] == pytest.approx([10.0 ** (step - 6) for step in range(7)])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 4.0])
    for wrong in ({"rise": 1.0, "steps": 5}, {"rise": 10.0, "steps": 1}):
        with pytest.raises(ValueError, match="need more than 1"):
            Rising(optimizer, **wrong)
