"""Contract: smoothing is unbiased from the first value, divergence is noticed and noise is not, the proposal is in
the part of the curve that falls."""

import math
import random

import pytest

from luthier.search.curve import BETA, Judge, Point, Smoother, proposal, steepest


def test_smoothing_by_hand():
    smoother = Smoother(beta=0.9)
    # (0.9 x 0.1 x 4 + 0.1 x 1) / (1 - 0.81) = 0.46 / 0.19
    assert [smoother.add(4.0), smoother.add(1.0)] == pytest.approx([4.0, 0.46 / 0.19])


def test_a_constant_stays_what_it_is_from_the_first_step():
    smoother = Smoother()
    assert [smoother.add(2.5) for _ in range(30)] == pytest.approx([2.5] * 30)


def test_planted_without_the_correction_a_constant_would_seem_to_rise():
    """What the test above guards against: the biased mean starts at a tenth of the loss, and looks like divergence."""
    mean, biased = 0.0, []
    for _ in range(30):
        mean = BETA * mean + (1 - BETA) * 2.5
        biased.append(mean)
    assert biased[0] == pytest.approx(0.25) and biased[-1] > 2.0 * biased[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence(value):
    judge = Judge()
    assert judge.add(2.0) is None
    assert str(value) in judge.add(value)


def test_a_loss_twice_the_best_is_divergence_and_the_step_is_the_first_one():
    judge = Judge(smoother=Smoother(beta=0.0))
    assert [judge.add(loss) is None for loss in (3.0, 2.0, 3.9, 4.1)] == [True, True, True, False]


def test_noise_is_no_divergence():
    chooser, judge = random.Random(0), Judge()
    assert all(judge.add(2.0 * chooser.uniform(0.5, 1.5)) is None for _ in range(500))


def test_a_loss_near_zero_or_below_may_ripple():
    """Of DPO and its like: k x best would call 0.02 after 0.005 diverged, or any loss at all after a negative one."""
    for losses in ([0.69, 0.3, 0.05, 0.005, 0.02], [0.5, -0.2, -0.6, -0.55]):
        judge = Judge(smoother=Smoother(beta=0.0))
        assert all(judge.add(loss) is None for loss in losses)
    judge = Judge(smoother=Smoother(beta=0.0))
    assert [judge.add(loss) is None for loss in (0.69, 0.005, 0.36)] == [True, True, False]


def curve(fall_at: float, *, noise: float = 0.0, steps: int = 60, rise_at: float = 1e-1) -> list[Point]:
    """A loss that falls around `fall_at` (a logistic curve in ln(rate)) and rises at `rise_at`."""
    chooser, smoother, points = random.Random(1), Smoother(), []
    for step in range(steps):
        rate = 1e-6 * 1e6 ** (step / (steps - 1))
        loss = 3.0 - 1.5 / (1 + (fall_at / rate) ** 1.5) + 2.0 / (1 + (rise_at / rate) ** 3)
        loss += noise * chooser.uniform(-1, 1)
        points.append(Point(rate, loss, smoother.add(loss)))
    return points


@pytest.mark.parametrize("fall_at", [1e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_the_steepest_point_is_where_the_loss_falls_fastest(fall_at, noise):
    found = steepest(curve(fall_at, noise=noise))
    assert found is not None and 1 / 3 < found / fall_at < 3


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_the_proposal_is_between_the_fastest_fall_and_the_lowest_point(noise):
    points = curve(1e-4, noise=noise)
    lowest = min(points, key=lambda point: point.smoothed).rate
    fastest, found = steepest(points), proposal(points)
    assert fastest < found < lowest and found == pytest.approx(math.sqrt(fastest * lowest))


def test_noise_in_the_first_steps_is_no_fall():
    """From one unlucky first row to the next the loss may fall faster than by anything that training does."""
    points = curve(1e-3)
    first = [Point(point.rate, loss, loss) for point, loss in zip(points, (5.0, 4.0, 3.4), strict=False)]
    found = steepest([*first, *points[3:]])
    assert found is not None and found > 1e-4


def test_a_range_that_begins_next_to_divergence_proposes_a_third_of_its_lowest_point():
    points = [point for point in curve(1e-4) if point.rate > 8e-3]
    lowest = min(points, key=lambda point: point.smoothed).rate
    assert steepest(points) is None and proposal(points) == pytest.approx(lowest / math.sqrt(10.0))


def test_few_steps_in_a_decade_make_no_slope():
    points = curve(1e-3, steps=7)
    assert steepest(points) is None and proposal(points) is not None


def test_a_curve_that_does_not_fall_proposes_nothing():
    flat = [Point(10.0**-step, 2.0, 2.0) for step in range(20, 0, -1)]
    rising = [Point(10.0 ** (step / 5 - 5), 2.0 + step, 2.0 + step) for step in range(20)]
    assert proposal(flat) is None and proposal(rising) is None and proposal([]) is None
