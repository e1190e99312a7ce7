"""Contract: on a problem whose best rate is known, range test and short runs find it."""

import math

import pytest

from luthier.search.curve import proposal
from luthier.search.ladder import choose, first_rates, next_rate
from luthier.search.range_test import range_test
from luthier.search.short_runs import short_run
from tests.search.quadratic import Quadratic


def found(problem, *, steps=5):
    """As `lr_find` does it."""
    curve = range_test(problem, low=1e-7, high=1e7, steps=140)
    centre = proposal(curve.points)
    assert centre is not None
    waiting, outcomes = first_rates(centre, 3), []
    while len(outcomes) < 20:
        rate = waiting.pop(0) if waiting else next_rate(outcomes)
        if rate is None:
            break
        outcomes.append(short_run(problem, rate, steps=steps))
    return curve, outcomes, choose(outcomes, start_loss=problem.held_out(step=0))


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0, 1000.0])
def test_the_best_rate_is_one_over_the_curvature(curvature):
    curve, outcomes, choice = found(Quadratic(curvature))
    assert choice.minimum and choice.usable
    assert 1 / 1.8 < choice.learning_rate * curvature < 1.8, "the rung nearest to 1/h"
    assert curve.stopped is not None
    assert 2.0 / curvature < curve.stopped_at < 200.0 / curvature, "divergence begins at 2/h"
    assert all(item.diverged for item in outcomes if item.rate * curvature > 20), "and is seen in the short runs"


def test_a_range_test_of_a_problem_without_divergence_goes_to_its_end():
    curve = range_test(Quadratic(1.0), low=1e-6, high=1e-1, steps=30)
    assert curve.stopped is None and curve.stopped_at is None and len(curve.points) == 30
    assert curve.points[0].rate == pytest.approx(1e-6) and curve.points[-1].rate == pytest.approx(1e-1)
    steps = [math.log(b.rate / a.rate) for a, b in zip(curve.points, curve.points[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * 29), "rates rise by one factor"


def test_a_range_test_ends_when_its_time_is_over():
    curve = range_test(Quadratic(1.0), low=1e-6, high=1e-1, steps=30, seconds=-1.0)
    assert len(curve.points) == 1 and "time" in curve.stopped and curve.stopped_at is None


def test_a_short_run_that_diverges_ends_there_and_has_no_held_out_loss():
    outcome = short_run(Quadratic(1.0), 100.0, steps=50)
    assert outcome.diverged and outcome.eval_loss is None and outcome.steps < 10
    assert outcome.score == math.inf


def test_a_range_test_goes_back_to_the_start():
    problem = Quadratic(1.0)
    range_test(problem, low=1e-2, high=1e3, steps=20)
    assert problem.weight.item() == 1.0


def test_planted_a_start_that_is_not_restored_changes_the_outcomes():
    """Each run would begin where the last one ended: the held-out losses then depend on the order."""
    rates = [0.1, 0.3, 1.9]
    clean = {rate: short_run(Quadratic(1.0), rate, steps=5).eval_loss for rate in rates}
    again, planted = Quadratic(1.0), Quadratic(1.0, restores=False)
    assert {rate: short_run(again, rate, steps=5).eval_loss for rate in reversed(rates)} == clean
    assert {rate: short_run(planted, rate, steps=5).eval_loss for rate in reversed(rates)} != clean
