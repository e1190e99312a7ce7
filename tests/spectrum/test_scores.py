"""Contract: compat is the original's number; calibrated finds planted signals, and does not move with the scale."""

import numpy as np
import pytest
import torch

from luthier.spectrum import scores
from luthier.spectrum.scores import calibrated, compat
from tests.spectrum.makers import energy, noise, original_snr, planted, values_of

SHAPES = [(96, 96), (64, 256), (256, 64), (48, 512)]


def score(matrix):
    n, m = matrix.shape
    return calibrated([values_of(matrix)], n, m)


@pytest.mark.parametrize(("n", "m"), [*SHAPES, (1, 64), (3, 5)])
@pytest.mark.parametrize("strengths", [[], [3.0], [2.0, 5.0, 9.0]])
def test_compat_is_the_number_of_the_original_script(n, m, strengths):
    matrix = planted(n, m, strengths[: min(n, m)], seed=n)
    assert compat(values_of(matrix), n, m) == pytest.approx(original_snr(matrix), rel=2e-4)


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_a_planted_signal_is_found_with_its_rank_and_energy(n, m):
    strengths = [3.0, 5.0, 8.0]
    found = score(planted(n, m, strengths))
    assert found.rank == 3
    assert found.signal_energy == pytest.approx(energy(strengths, n, m), rel=0.1)
    whole = float((planted(n, m, strengths) ** 2).sum())
    assert found.score == pytest.approx(energy(strengths, n, m) / whole, rel=0.1)


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_a_stronger_signal_scores_higher(n, m):
    found = [score(planted(n, m, [strength, strength])).score for strength in (1.8, 2.5, 4.0, 8.0, 20.0)]
    assert found == sorted(found) and found[0] < found[-1]
    more = [score(planted(n, m, [4.0] * rank)).score for rank in (0, 1, 2, 4, 8)]
    assert more == sorted(more)


def test_the_original_falls_when_a_signal_is_planted_and_ours_rises():
    plain, loaded = noise(256, 256), planted(256, 256, [20.0])
    assert compat(values_of(loaded), 256, 256) < compat(values_of(plain), 256, 256)
    assert score(loaded).score > score(plain).score


def test_a_signal_too_weak_to_show_is_not_found():
    assert score(planted(256, 256, [0.7])).rank == 0, "below 1 no method can see it (Baik, Ben Arous, Peche)"


@pytest.mark.parametrize("factor", [1e-6, 0.1, 10.0, 1e6])
def test_scaling_and_transposition_do_not_move_the_calibrated_score(factor):
    matrix = planted(64, 192, [2.0, 6.0])
    assert score(matrix * factor).score == pytest.approx(score(matrix).score, rel=1e-9)
    assert score(matrix.T).score == pytest.approx(score(matrix).score, rel=1e-9)
    assert score(matrix.T).rank == score(matrix).rank
    scaled = compat(values_of(matrix * factor), 64, 192)
    assert scaled == pytest.approx(compat(values_of(matrix), 64, 192) / factor, rel=1e-6), "the original divides by S_1"


@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(16, 24), torch.eye(16), torch.ones(16, 24), torch.full((16, 24), 1e-30), torch.full((16, 24), 1e18)],
)
def test_there_are_no_infinities_and_no_nan(matrix):
    values = values_of(matrix)
    assert np.isfinite(compat(values, *matrix.shape))
    assert 0.0 <= score(matrix).score <= 1.0


def test_a_matrix_without_noise_is_all_signal_and_zeros_are_none():
    assert score(torch.ones(16, 24)).score == pytest.approx(1.0)
    assert score(torch.zeros(16, 24)).score == 0.0


def test_experts_of_a_stack_are_weighed_by_their_energy():
    strong, weak = planted(32, 64, [9.0], seed=1), noise(32, 64, seed=2)
    both = calibrated([values_of(strong), values_of(weak)], 32, 64)
    assert score(weak).score < both.score < score(strong).score
    assert both.rank == score(strong).rank + score(weak).rank


def test_too_few_values_have_no_calibrated_score():
    assert calibrated([values_of(noise(15, 512))], 15, 512) is None


def test_a_planted_score_without_shrinkage_overstates_the_energy(monkeypatch):
    """Planted bug: the observed values taken for the signal's own."""
    monkeypatch.setattr(scores, "_before_noise", lambda values, std, n, m: values)
    strengths = [1.6, 1.8]
    assert score(planted(256, 256, strengths)).signal_energy > 1.3 * energy(strengths, 256, 256)
