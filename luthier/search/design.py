"""Which settings a sweep tries: all of a grid, a quasi-random sample, or what optuna asks for next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from luthier.runtime.errors import EnvironmentProblem, Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.search.space import Axis

__all__ = ["Adviser", "Method", "Settings", "corners", "fixed_design", "grid", "make_adviser", "quasi_random"]

Method = Literal["grid", "random", "optuna"]
Settings = dict[str, Any]
"""A value for each key of the axes, in their order."""

MOST_TRIALS = 1000
MOST_CORNERS = 256
DRAWS_PER_TRIAL = 16
"""Of which most may repeat settings, when an axis has few values."""


class Adviser(Protocol):
    """Asks for settings one by one, and is told what they came to."""

    def ask(self) -> Settings:
        """The next settings."""
        ...

    def tell(self, value: float | None) -> None:
        """Score of the settings asked for last; None: the trial failed."""
        ...


def fixed_design(axes: Sequence[Axis], method: Method, *, trials: int | None, seed: int) -> list[Settings] | None:
    """All settings of a method that knows them beforehand; None for optuna.

    Raises:
        RecipeError: the method does not go with the axes or the number of trials.
    """
    if trials is not None and not 1 <= trials <= MOST_TRIALS:
        raise RecipeError(code="C163", message=f"`--trials` must be from 1 to {MOST_TRIALS}, got {trials}")
    if method == "grid":
        if trials is not None:
            message = "`--trials` would have no effect: a grid runs all of its points"
            raise RecipeError(code="C163", message=message, hint="leave it out, or add --method random")
        return grid(axes)
    if trials is None:
        message = f"method {method} needs to know how many trials to run"
        raise RecipeError(code="C163", message=message, hint="for instance --trials 16")
    return quasi_random(axes, trials, seed=seed) if method == "random" else None


def grid(axes: Sequence[Axis]) -> list[Settings]:
    """Every combination, the last key fastest.

    Raises:
        RecipeError: a range without a number of points, or too many combinations.
    """
    open_ranges = [axis for axis in axes if axis.range is not None and axis.range.points is None]
    if open_ranges:
        hint = "write /5 behind the range for five points of it, or add --method random --trials 16"
        raise RecipeError(problems=[
            Problem(code="C163", message=f"`{axis.key}` is a range, of which a grid needs points", hint=hint)
            for axis in open_ranges
        ])  # fmt: skip
    columns = [axis.range.grid() if axis.range is not None else list(axis.values) for axis in axes]
    count = math.prod(len(column) for column in columns)
    if count > MOST_TRIALS:
        message = f"this grid has {count:,} combinations; at most {MOST_TRIALS:,} are run"
        raise RecipeError(code="C163", message=message, hint="fewer values, or --method random --trials 64")
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*columns)]


def quasi_random(axes: Sequence[Axis], trials: int, *, seed: int) -> list[Settings]:
    """Up to `trials` different settings from a scrambled Sobol sequence: evenly spread in all axes at once.

    The first n of a longer sample are the sample of n, so raising `trials` keeps every trial that was run. Fewer
    come back only if there are no more different ones.
    """
    found: dict[str, Settings] = {}
    for shares in _sobol(len(axes), trials * DRAWS_PER_TRIAL, seed):
        settings = {axis.key: axis.at(share) for axis, share in zip(axes, shares, strict=True)}
        found.setdefault(hash_json(settings), settings)
        if len(found) == trials:
            break
    return list(found.values())


def _sobol(dimensions: int, most: int, seed: int) -> Iterator[list[float]]:
    from scipy.stats import qmc

    sampler = qmc.Sobol(dimensions, scramble=True, rng=seed)
    # A power of two keeps the balance of the sequence; the generator gives no more than are asked for.
    for row in sampler.random_base2(math.ceil(math.log2(max(2, most)))):
        yield [float(share) for share in row]


def corners(axes: Sequence[Axis]) -> list[Settings]:
    """Settings that show what can be wrong with any: all values and both ends of ranges, combined.

    With more than 256 combinations each axis is varied by itself.
    """
    columns = [axis.ends() for axis in axes]
    keys = [axis.key for axis in axes]
    if math.prod(len(column) for column in columns) <= MOST_CORNERS:
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*columns)]
    base = {key: column[0] for key, column in zip(keys, columns, strict=True)}
    return [{**base, key: value} for key, column in zip(keys, columns, strict=True) for value in column]


def make_adviser(axes: Sequence[Axis], *, minimise: bool, seed: int) -> Adviser:
    """Optuna's TPE sampler, seeded: told the same scores it asks for the same settings, so a sweep can go on.

    Raises:
        EnvironmentProblem: optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise EnvironmentProblem(
            code="R752", message="`--method optuna` needs optuna, which is not installed",
            hint="pip install 'luthier[sweep]', or --method random",
        ) from None  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), direction="minimize" if minimise else "maximize"
    )
    return _Optuna(axes, study)


class _Optuna:
    def __init__(self, axes: Sequence[Axis], study: Any) -> None:
        self._axes, self._study, self._asked = axes, study, None
        self._spaces = {axis.key: _distribution(axis) for axis in axes}

    def ask(self) -> Settings:
        self._asked = trial = self._study.ask(self._spaces)
        return {axis.key: _value(axis, trial.params[axis.key]) for axis in self._axes}

    def tell(self, value: float | None) -> None:
        from optuna.trial import TrialState

        if value is None:
            self._study.tell(self._asked, state=TrialState.FAIL)
        else:
            self._study.tell(self._asked, value)


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    bounds = axis.range
    if bounds is None:
        return CategoricalDistribution(list(range(len(axis.values))))
    if bounds.whole:
        return IntDistribution(int(bounds.low), int(bounds.high), log=bounds.kind == "logint")
    return FloatDistribution(bounds.low, bounds.high, log=bounds.kind == "log")


def _value(axis: Axis, asked: Any) -> Any:
    if axis.range is None:
        return axis.values[asked]
    return int(asked) if axis.range.whole else min(max(float(f"{asked:.4g}"), axis.range.low), axis.range.high)
