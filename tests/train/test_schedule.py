"""Contract: the rate of every step is the closed formula in `schedule.py`, to 1e-12."""

from __future__ import annotations

import json
import math

import pytest
import torch

from luthier.recipe.schedules import REQUIRED, SCHEDULES
from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import RecipeError
from luthier.train.schedule import Schedule, warmup_steps
from tests.train.support import distance
from tests.train.test_rates import cut_and_resumed

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


# -- the other names of transformers

MORE = {
    "cosine_with_restarts": {"num_cycles": 2}, "cosine_with_min_lr": {"min_lr_rate": 0.1}, "polynomial": {"power": 2.0},
    "cosine_warmup_with_min_lr": {"min_lr": 3e-5, "warmup_lr_rate": 0.2}, "inverse_sqrt": {"timescale": 7},
    "warmup_stable_decay": {"num_decay_steps": 5, "decay_type": "linear", "min_lr_ratio": 0.1},
    "cosine": {"num_cycles": 1.5},
}  # fmt: skip


def more(name: str, settings=None, warmup: int = 3, rates=(BASE, 4 * BASE)) -> tuple[Schedule, torch.optim.Optimizer]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, lr=BASE)
    return Schedule(optimizer, name=name, warmup=warmup, total_steps=TOTAL, settings=settings), optimizer


def test_the_names_are_those_of_transformers():
    from transformers.trainer_utils import SchedulerType

    assert {name.value for name in SchedulerType} == set(SCHEDULES)
    assert set(TrainSection.model_fields["lr_scheduler_type"].annotation.__args__) == set(SCHEDULES)


def test_every_setting_is_one_of_transformers_function():
    import inspect

    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

    for name, settings in SCHEDULES.items():
        function = TYPE_TO_SCHEDULER_FUNCTION[name]
        if name == "reduce_lr_on_plateau":
            function = torch.optim.lr_scheduler.ReduceLROnPlateau
        if name == "greedy":
            function = GreedyLR
        assert set(settings) <= set(inspect.signature(function).parameters), name


@pytest.mark.parametrize("name", MORE)
def test_settings_reach_the_schedule(name):
    """Step by step against transformers' own scheduler, and unlike the schedule without them."""
    from transformers import get_scheduler

    subject, optimizer = more(name, MORE[name])
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    theirs = get_scheduler(
        name, reference, num_warmup_steps=3, num_training_steps=TOTAL, scheduler_specific_kwargs=MORE[name]
    )
    rates = []
    for step in range(TOTAL):
        rates.append(subject.set(step))
        assert rates[-1] == pytest.approx(reference.param_groups[0]["lr"], rel=0, abs=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rates[-1], 4 * rates[-1]])
        reference.step()
        theirs.step()
    if name not in REQUIRED:
        plain, _ = more(name)
        assert max(abs(plain.rate(step) - rates[step]) for step in range(TOTAL)) > 1e-6


def test_warmup_stable_decay_is_flat_then_falls_to_its_floor():
    subject, _ = more("warmup_stable_decay", MORE["warmup_stable_decay"])
    rates = [subject.rate(step) / BASE for step in range(TOTAL + 1)]
    assert rates[3:16] == [1.0] * 13
    assert rates[16:] == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])


def test_a_decay_longer_than_the_run_is_refused():
    with pytest.raises(RecipeError) as caught:
        more("warmup_stable_decay", {"num_decay_steps": 18})
    assert caught.value.problems[0].code == "T476"


LOSSES = [3.0, 2.0, 2.5, 2.4, 2.3, 1.9, 2.2, 2.1, 2.0]


@pytest.mark.parametrize(("name", "settings"), [
    ("reduce_lr_on_plateau", {"patience": 1, "factor": 0.5}),
    ("greedy", {"patience": 1, "factor": 0.5, "min_lr": 1e-6, "smooth": True, "window_size": 2, "reset_start": 1}),
])  # fmt: skip
def test_a_schedule_that_follows_the_loss_goes_on_where_it_was(name, settings):
    whole, first = more(name, settings)
    rates = set()
    for loss in LOSSES[:5]:
        whole.observe(loss)
        rates.add(whole.set(0))
    assert len(rates) > 1
    state = json.loads(json.dumps(whole.state(), allow_nan=False))
    resumed, second = more(name, settings)
    assert resumed.state() == {}
    resumed.restore(state)
    assert resumed.set(5) == whole.set(5)
    for loss in LOSSES[5:]:
        for subject in (whole, resumed):
            subject.observe(loss)
        assert [group["lr"] for group in first.param_groups] == [group["lr"] for group in second.param_groups]
        low, high = (group["lr"] for group in first.param_groups)
        assert high == pytest.approx(4 * low)


def test_other_schedules_do_not_listen_and_have_no_state():
    subject, _ = more("cosine")
    before = subject.rate(7)
    subject.observe(1.0)
    assert (subject.rate(7), subject.state()) == (before, {})


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_run_lowers_its_rate_when_the_loss_rises_and_resumes_bit_for_bit(tmp_path, monkeypatch, name):
    settings = {"lr_scheduler_type": name, "eval_steps": 1, "learning_rate": 3e-2}
    settings["lr_scheduler_kwargs"] = {"patience": 0, "factor": 0.5, "min_lr": 1e-5}
    whole, resume = cut_and_resumed(tmp_path, monkeypatch, validation=4, **settings)
    rates = [line["learning_rate"] for line in whole.metrics if "loss" in line]
    assert rates[0] == 3e-2
    assert len(set(rates)) > 1
    resumed = resume()
    assert resumed.metrics == whole.metrics
    assert distance(whole, resumed) == 0.0


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
