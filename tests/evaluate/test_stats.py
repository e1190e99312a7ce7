"""Contract: intervals and p-values are those of the literature, and the words keep their error rate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.evaluate.stats import Interval, PairedTest, paired_means, paired_proportions, proportion, ratio, verdict


def pairs(both, wins, losses, neither):
    """Scores of two models with this many rows of each kind."""
    first = [1.0] * both + [0.0] * wins + [1.0] * losses + [0.0] * neither
    second = [1.0] * both + [1.0] * wins + [0.0] * losses + [0.0] * neither
    return first, second


def test_wilson_by_hand():
    # p = 0.1, n = 10, z = 1.959964: centre (p + z^2/2n)/(1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2)/(1 + z^2/n)
    z, p, n = 1.959963984540054, 0.1, 10
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = proportion(1, 10, confidence=0.95)
    assert (found.low, found.high) == pytest.approx(((centre - half) / scale, (centre + half) / scale), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((0.01788, 0.40415), abs=1e-5)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_holds_the_proportion_and_stays_in_range(k, n):
    found = proportion(min(k, n), n, confidence=0.9)
    assert 0.0 <= found.low <= min(k, n) / n <= found.high <= 1.0


def test_mcnemar_by_hand():
    first, second = pairs(5, 8, 2, 5)
    found = paired_proportions(first, second, confidence=0.95)
    # two-sided: 2 x P(X <= 2), X ~ Binomial(10, 1/2) = 2 x (1 + 10 + 45) / 1024
    assert found.p_value == pytest.approx(2 * 56 / 1024)
    assert found.delta == pytest.approx(6 / 20)


def test_newcombe_against_published_intervals():
    # Newcombe 1998 (Statistics in Medicine 17: 2635), method 10, recomputed from its formulas:
    # a = both, b = second only, c = first only, d = neither; z = 1.959964.
    def by_hand(a, b, c, d):
        z, n = 1.959963984540054, a + b + c + d

        def wilson(k):
            p = k / n
            half = z * math.sqrt(z * z + 4 * n * p * (1 - p))
            return (2 * n * p + z * z - half) / (2 * (n + z * z)), (2 * n * p + z * z + half) / (2 * (n + z * z))

        p1, p2 = (a + b) / n, (a + c) / n
        (l1, u1), (l2, u2) = wilson(a + b), wilson(a + c)
        product = a * d - b * c
        corrected = max(product - n / 2, 0) if product > 0 else product
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        phi = corrected / math.sqrt(margins) if margins else 0.0
        down = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
        up = math.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
        return p1 - p2 - down, p1 - p2 + up

    for table in [(36, 12, 2, 0), (20, 12, 2, 16), (54, 0, 0, 0), (0, 30, 24, 0), (10, 9, 1, 80), (0, 0, 0, 7)]:
        found = paired_proportions(*pairs(*table), confidence=0.95).interval
        assert (found.low, found.high) == pytest.approx(by_hand(*table), abs=1e-9), table


@given(st.tuples(*[st.integers(0, 12)] * 4).filter(any))
def test_swapping_the_models_turns_the_result_round(table):
    first, second = pairs(*table)
    there = paired_proportions(first, second, confidence=0.95)
    back = paired_proportions(second, first, confidence=0.95)
    assert there.delta == -back.delta
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))
    assert there.interval.low - 1e-12 <= there.delta <= there.interval.high + 1e-12


def test_rows_on_which_both_agree_say_nothing():
    found = paired_proportions(*pairs(7, 0, 0, 3), confidence=0.95)
    assert (found.delta, found.p_value) == (0.0, 1.0)
    assert found.interval.low < 0 < found.interval.high


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    found = ratio(values, np.ones(400), confidence=0.95)
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert found == ratio(values, np.ones(400), confidence=0.95), "resampling is seeded"


def test_a_ratio_weighs_its_rows():
    # Rows of 100 tokens at 1 nat and rows of 1 token at 50 nats: the short ones hardly matter.
    sums, weights = [100.0, 50.0] * 30, [100.0, 1.0] * 30
    found = ratio(sums, weights, confidence=0.95)
    assert found.low <= 150 / 101 <= found.high < 3.0


@pytest.mark.parametrize("values", [[2.0], [2.0] * 9])
def test_rows_that_are_all_alike_have_no_spread(values):
    assert ratio(values, [1.0] * len(values), confidence=0.95) == Interval(2.0, 2.0)


def test_permutation_by_hand():
    # Differences 1, 2, 3: of the 8 signs only +++ and --- are as extreme, so p = 2/8.
    found = paired_means([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [1.0] * 3, confidence=0.95)
    assert found.p_value == pytest.approx(2 / 8)
    assert found.delta == pytest.approx(2.0)


def test_a_difference_of_losses_is_per_token():
    before, after, tokens = [30.0, 4.0] * 20, [20.0, 4.5] * 20, [10.0, 1.0] * 20
    found = paired_means(before, after, tokens, confidence=0.95)
    assert found.delta == pytest.approx((24.5 - 34) / 11)
    assert found.interval.low < found.delta < found.interval.high < 0.0
    assert found.p_value < 0.01


def test_no_difference_at_all():
    found = paired_means([1.0, 2.0], [1.0, 2.0], [1.0, 1.0], confidence=0.95)
    assert (found.delta, found.p_value, found.interval) == (0.0, 1.0, Interval(0.0, 0.0))


@pytest.mark.parametrize(
    ("low", "high", "p", "higher", "word"),
    [
        (0.1, 0.3, 0.01, True, "better"),
        (0.1, 0.3, 0.01, False, "worse"),
        (-0.3, -0.1, 0.01, True, "worse"),
        (-0.3, -0.1, 0.01, False, "better"),
        (0.1, 0.3, 0.05, True, "no evidence"),  # not below 1 - confidence
        (0.1, 0.3, 0.2, True, "no evidence"),
        (-0.1, 0.3, 0.01, True, "no evidence"),
        (0.0, 0.3, 0.01, True, "no evidence"),
    ],
)
def test_verdict_needs_both_test_and_interval(low, high, p, higher, word):
    test = PairedTest(delta=(low + high) / 2, interval=Interval(low, high), test="", p_value=p)
    assert verdict(test, confidence=0.95, higher_is_better=higher) == word


def _false_alarms(rounds, draw, test):
    generator = np.random.default_rng(11)
    words = [verdict(test(*draw(generator)), confidence=0.95, higher_is_better=True) for _ in range(rounds)]
    return sum(word != "no evidence" for word in words) / rounds


def _equal_models(generator, n=60):
    skill = generator.uniform(0.1, 0.9, n)  # rows differ in difficulty, the models do not
    return [(generator.random(n) < skill).astype(float).tolist() for _ in "ab"]


def test_two_equal_models_are_rarely_told_apart():
    """McNemar's exact test is conservative: at most 5% of 400 comparisons (and 3 standard errors)."""
    rate = _false_alarms(400, _equal_models, lambda a, b: paired_proportions(a, b, confidence=0.95))
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_better_model_is_found():
    generator = np.random.default_rng(5)
    found = 0
    for _ in range(50):
        first = (generator.random(100) < 0.4).astype(float)
        second = np.maximum(first, generator.random(100) < 0.3)
        test = paired_proportions(first.tolist(), second.tolist(), confidence=0.95)
        found += verdict(test, confidence=0.95, higher_is_better=True) == "better"
    assert found >= 48


@pytest.mark.slow
def test_equal_models_are_rarely_told_apart_by_graded_scores():
    def draw(generator):
        base = generator.gamma(2.0, 10.0, 40)
        return base + generator.normal(0, 1, 40), base + generator.normal(0, 1, 40), generator.integers(1, 30, 40)

    rate = _false_alarms(400, draw, lambda a, b, w: paired_means(a, b, w, confidence=0.95))
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "agree"), [(0.0, 0.5), (0.1, 0.5), (0.3, 0.0)])
def test_the_interval_of_a_difference_covers_the_truth(gain, agree):
    generator, n, covered = np.random.default_rng(2), 80, 0
    for _ in range(1000):
        luck = generator.random(n)
        other = np.where(generator.random(n) < agree, luck, generator.random(n))
        test = paired_proportions(
            (luck < 0.4).astype(float).tolist(), (other < 0.4 + gain).astype(float).tolist(), confidence=0.95
        )
        covered += test.interval.low <= gain <= test.interval.high
    assert covered / 1000 >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 1000)
