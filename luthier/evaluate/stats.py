"""Intervals of scores and tests of paired differences.

Right-or-wrong scores: Wilson's interval of a proportion; McNemar's exact test on the rows where
the two models differ; Newcombe's interval of a paired difference (method 10). Other scores:
bootstrap intervals (BCa) and a permutation test that swaps the two models row by row. scipy does
the work; resampling is seeded, so the same scores give the same numbers.

    Wilson 1927, JASA 22: 209. McNemar 1947, Psychometrika 12: 153. Newcombe 1998, Statistics in Medicine 17: 2635.
    Efron 1987, JASA 82: 171 (BCa). Phipson and Smyth 2010 (a permutation p-value is never 0).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = [
    "Interval", "PairedTest", "Verdict", "holm", "paired_means", "paired_proportions", "proportion", "ratio",
    "sign_test", "verdict",
]  # fmt: skip

Verdict = Literal["better", "no evidence", "worse"]

RESAMPLES = 9_999
SEED = 0
# Resamples x rows x 8 bytes are in memory at once: at most about 64 MB.
_BATCH_ELEMENTS = 8_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Lower and upper end."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Difference (second minus first) on the same rows."""

    delta: float
    interval: Interval
    test: str
    p_value: float
    """Two-sided."""


def proportion(successes: int, n: int, *, confidence: float) -> Interval:
    """Wilson's interval of successes / n."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def ratio(sums: Sequence[float], weights: Sequence[float], *, confidence: float) -> Interval:
    """Bootstrap interval (over rows) of sum(sums) / sum(weights); a mean when all weights are 1.

    One row, or rows that are all alike, say nothing about spread: then low = high = the ratio.
    """
    values, scale = np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)
    point = float(values.sum() / scale.sum())
    return _bootstrap((values, scale), _ratio_of_sums, point, confidence)


def paired_proportions(first: Sequence[float], second: Sequence[float], *, confidence: float) -> PairedTest:
    """McNemar's exact test and Newcombe's interval for scores that are 0 or 1."""
    from scipy.stats import binomtest

    wins = sum(1 for a, b in zip(first, second, strict=True) if b > a)
    losses = sum(1 for a, b in zip(first, second, strict=True) if b < a)
    p_value = float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    n = len(first)
    both = sum(1 for a, b in zip(first, second, strict=True) if a and b)
    interval = _newcombe(both, wins, losses, n - both - wins - losses, confidence=confidence)
    return PairedTest(delta=(wins - losses) / n, interval=interval, test="McNemar, exact", p_value=p_value)


def paired_means(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float], *, confidence: float
) -> PairedTest:
    """Permutation test and bootstrap interval for the difference of two ratios with the same weights.

    Args:
        first: Sum of each row (its score, or its negative log-likelihood).
        second: The same rows with the other model.
        weights: Weight of each row (1, or its tokens).
        confidence: Level of the interval.
    """
    from scipy.stats import permutation_test

    before, after = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    scale = np.asarray(weights, dtype=float)
    differences = after - before
    delta = float(differences.sum() / scale.sum())
    if not differences.any():
        return PairedTest(delta=0.0, interval=Interval(0.0, 0.0), test="paired permutation", p_value=1.0)
    # Under the null hypothesis the two models of a row may be swapped, which flips the sign of its difference.
    result = permutation_test(
        (differences,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(differences)),
        rng=np.random.default_rng(SEED),
    )
    interval = _bootstrap((differences, scale), _ratio_of_sums, delta, confidence)
    return PairedTest(delta=delta, interval=interval, test="paired permutation", p_value=float(result.pvalue))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test: wins and losses are equally likely; 1 without any."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below a level, the family-wise error rate is at most that level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(test: PairedTest, *, confidence: float, higher_is_better: bool) -> Verdict:
    """`better` or `worse` only when the test is significant at 1 - confidence and the interval excludes 0."""
    level = round(1.0 - confidence, 12)  # 1 - 0.95 is a little more than 0.05
    if test.p_value >= level or test.interval.low <= 0.0 <= test.interval.high:
        return "no evidence"
    return "better" if (test.interval.low > 0.0) == higher_is_better else "worse"


def _newcombe(both: int, wins: int, losses: int, neither: int, *, confidence: float) -> Interval:
    """Newcombe's hybrid score interval of a paired difference, method 10, for second minus first.

    Wilson's intervals of the two proportions, combined with their correlation phi, whose
    numerator is corrected for continuity when it is positive.
    """
    n = both + wins + losses + neither
    second, first = (both + wins) / n, (both + losses) / n
    wilson_second = proportion(both + wins, n, confidence=confidence)
    wilson_first = proportion(both + losses, n, confidence=confidence)
    product = both * neither - wins * losses
    numerator = max(product - n / 2, 0.0) if product > 0 else float(product)
    margins = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    phi = numerator / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    down = reach(second - wilson_second.low, wilson_first.high - first)
    up = reach(wilson_second.high - second, first - wilson_first.low)
    return Interval(second - first - down, second - first + up)


def _ratio_of_sums(values: Any, scale: Any, axis: int = -1) -> Any:
    return values.sum(axis=axis) / scale.sum(axis=axis)


def _bootstrap(data: tuple[Any, ...], statistic: Any, point: float, confidence: float) -> Interval:
    from scipy.stats import DegenerateDataWarning, bootstrap

    n = len(data[0])
    # Rows that are all alike (or one row) have no spread to resample.
    if n < 2 or np.ptp(data[0] / data[1]) == 0.0:
        return Interval(point, point)

    def interval(method: str) -> Interval:
        result = bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            method=method,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            batch=_batch(n),
            rng=np.random.default_rng(SEED),
        )
        return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))

    with warnings.catch_warnings():
        # Few rows can leave BCa without an answer; the percentile method always has one.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = interval("BCa")
    return found if math.isfinite(found.low) and math.isfinite(found.high) else interval("percentile")


def _batch(n: int) -> int:
    return max(1, _BATCH_ELEMENTS // n)
