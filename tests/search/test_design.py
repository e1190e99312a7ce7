"""Contract: a grid is every combination, a sample is seeded, even and a prefix of a longer one."""

import math

import pytest

from luthier.runtime.errors import EnvironmentProblem, RecipeError
from luthier.search.design import corners, fixed_design, grid, make_adviser, quasi_random
from luthier.search.space import Axis, Range

RATE = Axis(key="train.learning_rate", range=Range(kind="log", low=1e-5, high=1e-3))
RANK = Axis(key="method.r", values=(8, 16))


def test_a_grid_is_every_combination():
    points = Axis(key="a.b", range=Range(kind="lin", low=0, high=1, points=3))
    assert grid([RANK, points]) == [{"method.r": r, "a.b": b} for r in (8, 16) for b in (0, 0.5, 1)]


def test_a_range_without_points_makes_no_grid():
    with pytest.raises(RecipeError, match="needs points") as error:
        grid([RATE, Axis(key="x.y", range=RATE.range), RANK])
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("method", "trials", "word"),
    [("grid", 4, "no effect"), ("random", None, "how many"), ("optuna", None, "how many"), ("random", 0, "from 1"),
     ("random", 5000, "from 1")],
)  # fmt: skip
def test_wrong_use(method, trials, word):
    with pytest.raises(RecipeError, match=word):
        fixed_design([RANK], method, trials=trials, seed=0)
    with pytest.raises(RecipeError, match="combinations"):
        grid([Axis(key=f"a.{name}", values=tuple(range(11))) for name in "xyz"])


def test_a_sample_is_seeded_and_a_prefix_of_a_longer_one():
    short, long = (quasi_random([RATE, RANK], n, seed=3) for n in (5, 21))
    assert long[:5] == short and len(long) == 21
    assert quasi_random([RATE, RANK], 5, seed=4) != short


def test_a_sample_is_even_in_each_axis():
    """Of 32 Sobol points each eighth of an axis holds 4, give or take one that rounding moves; 32 independent draws
    would leave some eighth with 1 or 2."""
    found = quasi_random([RATE, Axis(key="b.c", range=Range(kind="lin", low=0, high=8))], 32, seed=0)
    eighths = [int((math.log10(s["train.learning_rate"]) + 5) / 2 * 8 - 1e-9) for s in found]
    for places in (eighths, [int(s["b.c"] - 1e-9) for s in found]):
        assert all(3 <= places.count(eighth) <= 5 for eighth in range(8)), places


def test_settings_are_different_and_end_when_there_are_no_more():
    found = quasi_random([RANK, Axis(key="x.y", values=("a", "b", "c"))], 50, seed=0)
    assert len(found) == 6 and len({str(settings) for settings in found}) == 6


def test_corners_show_every_value_and_both_ends():
    found = corners([RATE, RANK])
    assert {s["train.learning_rate"] for s in found} == {1e-5, 1e-3} and {s["method.r"] for s in found} == {8, 16}
    many = [Axis(key=f"k.{index}", values=tuple(range(10))) for index in range(5)]
    found = corners(many)
    assert len(found) == 50 and all({s[axis.key] for s in found} == set(range(10)) for axis in many)


def test_optuna_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnvironmentProblem, match=r"luthier\[sweep\]"):
        make_adviser([RATE], minimise=True, seed=0)


def test_optuna_finds_a_minimum_and_repeats_itself():
    pytest.importorskip("optuna")

    def search():
        adviser, asked = make_adviser([RATE, RANK], minimise=True, seed=1), []
        for _ in range(25):
            settings = adviser.ask()
            asked.append(settings)
            adviser.tell((math.log10(settings["train.learning_rate"]) + 4) ** 2 + (settings["method.r"] == 8))
        return asked

    asked = search()
    assert asked == search(), "told the same it asks the same, so that a sweep can go on"
    best = min(asked, key=lambda s: (math.log10(s["train.learning_rate"]) + 4) ** 2 + (s["method.r"] == 8))
    assert 3e-5 < best["train.learning_rate"] < 3e-4 and best["method.r"] == 16
    assert all(1e-5 <= s["train.learning_rate"] <= 1e-3 for s in asked)


def test_optuna_takes_a_failed_trial():
    pytest.importorskip("optuna")
    adviser = make_adviser([RANK], minimise=False, seed=0)
    for value in (None, 1.0, None):
        adviser.ask()
        adviser.tell(value)
