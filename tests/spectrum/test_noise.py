"""Contract: of the singular values of pure noise at most 1% are called signal, at any aspect ratio, scale and size."""

import math

import numpy as np
import pytest
import torch

from luthier.spectrum import scores
from luthier.spectrum.noise import SMALLEST_SIDE, edge, mp_median, noise_std
from luthier.spectrum.scores import calibrated, compat_threshold
from tests.spectrum.makers import noise, values_of

ASPECTS = (1, 2, 3.5, 4, 8, 16, 64)


def share_called_signal(n, m, *, draws, std=0.02):
    found = [calibrated([values_of(noise(n, m, std=std, seed=seed))], n, m) for seed in range(draws)]
    return sum(result.rank for result in found) / (draws * n), max(result.score for result in found)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_pure_noise_has_at_most_one_percent_signal_at_every_aspect_ratio(aspect):
    n = 64
    share, score = share_called_signal(n, int(n * aspect), draws=40)
    assert share <= 0.01
    assert score < 0.12, "and no energy worth a rank"


@pytest.mark.parametrize(("n", "m"), [(SMALLEST_SIDE, 16), (16, 64), (16, 1024), (192, 576)])
def test_small_and_real_shapes_keep_the_bound(n, m):
    share, _ = share_called_signal(n, m, draws=max(20, 3000 // n))
    assert share <= 0.01


@pytest.mark.parametrize(("n", "m"), [(256, 256), (256, 1024), (64, 1024)])
def test_the_original_threshold_calls_a_quarter_to_all_of_the_noise_signal(n, m):
    """The fault that the calibrated score repairs, measured on the same draws."""
    values = values_of(noise(n, m))
    original = float((values > compat_threshold(values, n, m)).mean())
    assert original > 0.2
    assert calibrated([values], n, m).rank == 0


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_noise_level_is_found_within_three_percent(aspect):
    n = 256
    m = int(n * aspect)
    std = noise_std(float(np.median(values_of(noise(n, m, std=0.37)))), n, m)
    assert std == pytest.approx(0.37, rel=0.03)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.1, 1 / 64])
def test_the_marchenko_pastur_median_is_that_of_the_density(beta):
    """The density integrated on its own axis, by the midpoint rule."""
    median = mp_median(beta)
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    width = (median - low) / 400_000
    x = low + (np.arange(400_000) + 0.5) * width
    below = float((np.sqrt((high - x) * (x - low)) / (2 * math.pi * beta * x)).sum() * width)
    assert below == pytest.approx(0.5, abs=2e-3)


def test_the_median_of_square_noise_is_the_known_one():
    """Gavish and Donoho: 4 / sqrt(3) / sqrt(mu) = 2.858."""
    assert 4 / math.sqrt(3) / math.sqrt(mp_median(1.0)) == pytest.approx(2.858, abs=1e-3)


def test_the_edge_is_where_the_largest_value_of_noise_lies():
    n, m, draws = 128, 512, 60
    largest = [values_of(noise(n, m, std=1.0, seed=seed))[0] for seed in range(draws)]
    assert np.mean(np.array(largest) > edge(1.0, n, m)) <= 0.05
    assert edge(1.0, n, m) < 1.03 * float(np.mean(largest)), "and not far beyond it"


def test_a_planted_edge_without_the_sides_of_the_matrix_fails(monkeypatch):
    """Planted bug: the original's edge, sigma (1 + sqrt(beta)) with sigma from the spread of the values."""
    monkeypatch.setattr(scores, "edge", lambda std, n, m: std * (1 + math.sqrt(min(n, m) / max(n, m))))
    assert share_called_signal(64, 256, draws=5)[0] > 0.5


def test_a_planted_edge_without_margin_fails(monkeypatch):
    """Planted bug: the asymptotic edge alone; the largest value passes it in every sixth matrix or so."""
    monkeypatch.setattr(scores, "edge", lambda std, n, m: 0.985 * std * (math.sqrt(n) + math.sqrt(m)))
    assert share_called_signal(16, 16, draws=200)[0] > 0.01


def test_heavy_tails_are_signal_to_this_score():
    """Noted, not repaired: entries without a fourth moment make large singular values of their own."""
    generator = np.random.default_rng(0)
    heavy = torch.from_numpy(generator.standard_t(2.5, size=(128, 512)))
    light = torch.from_numpy(generator.standard_t(12, size=(128, 512)))
    assert calibrated([values_of(heavy)], 128, 512).score > 0.1
    assert calibrated([values_of(light)], 128, 512).rank <= 1


def test_rows_of_different_scale_are_signal_to_this_score():
    """Noted, not repaired (docs/spectrum.md): the law needs entries of one scale."""
    generator = np.random.default_rng(0)
    scales = torch.from_numpy(np.exp(0.5 * generator.standard_normal((128, 1))))
    assert calibrated([values_of(noise(128, 512) * scales)], 128, 512).score > 0.3
