"""Contract: the lowest held-out loss wins whatever the order of the runs; an edge is never a minimum."""

import itertools
import math

import pytest

from luthier.search.ladder import HIGHEST, LOWEST, Outcome, choose, first_rates, next_rate, rung, rung_index


def outcome(rate, loss):
    return Outcome(
        rate=rate, steps=10, tokens=100, train_loss=1.0, eval_loss=loss,
        diverged="the loss is nan" if loss is None else None, seconds=1.0,
    )  # fmt: skip


def outcomes(losses):
    return [outcome(rate, loss) for rate, loss in losses.items()]


def search(loss_of, centre, *, count=3, most=20):
    """The rates a search tries, in order, and its choice."""
    waiting, done = first_rates(centre, count), []
    while len(done) < most:
        rate = waiting.pop(0) if waiting else next_rate(done)
        if rate is None:
            break
        done.append(outcome(rate, loss_of(rate)))
    return [item.rate for item in done], choose(done, start_loss=10.0)


def test_rungs_are_1_and_3_of_each_decade():
    assert [rung(index) for index in range(-4, 3)] == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert all(rung_index(rung(index)) == index for index in range(LOWEST, HIGHEST + 1))
    assert rung(rung_index(1.6e-4)) == 1e-4 and rung(rung_index(1.8e-4)) == 3e-4


def test_first_rates_are_neighbours_of_the_centre():
    assert first_rates(1.1e-3, 3) == [1e-3, 3e-3, 3e-4]
    assert sorted(first_rates(1.1e-3, 4)) == [3e-4, 1e-3, 3e-3, 1e-2]


def bowl(best, *, diverges_above=math.inf):
    """Held-out loss with its minimum at `best`."""

    def loss(rate):
        return None if rate > diverges_above else 2.0 + (math.log(rate / best)) ** 2 / 20

    return loss


@pytest.mark.parametrize("best", [3e-6, 1e-4, 3e-3])
@pytest.mark.parametrize("centre", [1e-5, 1e-3, 1e-1])
def test_the_search_walks_outward_until_the_best_is_inside(best, centre):
    rates, choice = search(bowl(best), centre)
    assert choice.learning_rate == best and choice.minimum and choice.edge is None
    assert min(rates) < best < max(rates)


def test_a_rate_that_diverged_bounds_the_search_from_above():
    rates, choice = search(bowl(1.0, diverges_above=1e-3), 1e-3)
    assert choice.learning_rate == 1e-3 and choice.minimum
    assert sorted(rates) == [3e-4, 1e-3, 3e-3]


def test_where_everything_diverges_the_search_goes_down():
    rates, choice = search(bowl(1e-6, diverges_above=1e-5), 1e-3)
    assert choice.learning_rate == 1e-6 and choice.minimum and max(rates) == 3e-3


def test_an_edge_is_reported_as_an_edge_and_never_as_a_minimum():
    _, choice = search(bowl(1e-8), 1e-3, most=4)
    assert choice.edge == "lowest" and not choice.minimum and not choice.usable
    _, choice = search(bowl(1e2), 1e-3, most=4)
    assert choice.edge == "highest" and not choice.minimum and not choice.usable


def test_the_ladder_ends():
    assert next_rate([outcome(rung(LOWEST), 1.0), outcome(rung(LOWEST + 1), 2.0)]) is None
    assert next_rate([outcome(rung(HIGHEST), 1.0), outcome(rung(HIGHEST - 1), 2.0)]) is None


def test_nothing_is_chosen_where_every_rate_diverged():
    choice = choose(outcomes({1e-3: None, 1e-4: None}), start_loss=3.0)
    assert not choice.usable and choice.eval_loss is None and choice.gain is None


def test_a_rate_that_gains_nothing_is_not_usable():
    choice = choose(outcomes({1e-4: 3.4, 1e-3: 3.2, 1e-2: 3.5}), start_loss=3.0)
    assert choice.minimum and choice.gain < 0 and not choice.usable


def test_the_order_of_the_runs_does_not_matter():
    losses = {1e-4: 2.5, 3e-4: 2.0, 1e-3: 2.0, 3e-3: None}
    found = {str(choose(list(order), start_loss=3.0)) for order in itertools.permutations(outcomes(losses))}
    assert len(found) == 1
    assert choose(outcomes(losses), start_loss=3.0).learning_rate == 3e-4, "of equal losses the lower rate"


def test_flatness_by_hand():
    choice = choose(outcomes({1e-4: 2.6, 3e-4: 2.02, 1e-3: 2.0, 3e-3: 2.06, 1e-2: 3.5}), start_loss=3.0)
    assert choice.gain == pytest.approx(1.0)
    assert choice.kept == pytest.approx({"0.0001": 0.4, "0.0003": 0.98, "0.003": 0.94, "0.01": -0.5})
    assert choice.flat == (3e-4, 1e-3)
