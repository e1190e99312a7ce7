"""Contract: singular values through the Gram matrix are those of an SVD within the stated bound; else it is one."""

import numpy as np
import pytest
import torch

from luthier.spectrum import singular
from luthier.spectrum.scores import calibrated, compat
from luthier.spectrum.singular import gram_is_enough, gram_values, singular_values
from tests.spectrum.makers import noise, planted, values_of

EPS = 2.0**-52


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(96, 96), (64, 640), (640, 64), (1, 9)])
def test_values_agree_with_an_svd_within_the_bound(n, m, dtype):
    matrix = planted(n, m, [3.0] if n > 1 else [], seed=n + m).to(dtype)
    exact = values_of(matrix)
    values, errors = gram_values(matrix[None])
    own = 10 * min(n, m) * EPS * exact[0]  # of the SVD itself
    assert (np.abs(values[0] - exact) <= errors[0] + own).all()
    found, how = singular_values(matrix[None])
    assert how == ["gram"]
    assert compat(found[0], n, m) == pytest.approx(compat(exact, n, m), rel=1e-6)


def test_a_batch_gives_what_its_matrices_give_alone():
    stack = torch.stack([planted(24, 40, [float(k)], seed=k) for k in range(1, 6)]).bfloat16()
    found, _ = singular_values(stack)
    for row, matrix in zip(found, stack, strict=True):
        np.testing.assert_allclose(row, singular_values(matrix[None])[0][0], rtol=1e-12)


def test_blocks_of_columns_add_up(monkeypatch):
    matrix = noise(32, 500)[None]
    whole = gram_values(matrix)[0][0]
    monkeypatch.setattr(singular, "_BLOCK_ELEMENTS", 32 * 7)
    np.testing.assert_allclose(gram_values(matrix)[0][0], whole, rtol=1e-10)


def test_a_low_rank_matrix_needs_and_gets_a_decomposition():
    """Three quarters of its values are zero: from the Gram matrix they would come out at 1e-8 of the largest."""
    thin = noise(64, 16, std=1.0, seed=1) @ noise(16, 96, std=1.0, seed=2)
    values, errors = gram_values(thin[None])
    assert not gram_is_enough(values[0], errors[0], 64, 96)
    found, how = singular_values(thin[None])
    assert how == ["svd"]
    np.testing.assert_allclose(found[0], values_of(thin), atol=1e-12 * values_of(thin)[0])


def test_values_of_nine_orders_of_magnitude_need_a_decomposition():
    spread = torch.diag(torch.logspace(0, -9, 64, dtype=torch.float64))
    found, how = singular_values(spread[None])
    assert how == ["svd"]
    np.testing.assert_allclose(found[0][-1], 1e-9, rtol=1e-6)


def test_a_planted_gram_in_the_type_of_the_weights_is_noticed(monkeypatch):
    """Planted bug: products summed in float32."""
    matrix = planted(96, 192, [30.0]).float()
    exact = values_of(matrix)
    small = matrix @ matrix.T
    values = torch.linalg.eigvalsh(small.double()).flip(0).clamp_min(0).sqrt().numpy()
    _, errors = gram_values(matrix[None])
    assert (np.abs(values - exact) > errors[0]).any()


def test_zeros_need_nothing():
    assert singular_values(torch.zeros(1, 8, 16))[1] == ["gram"]
    with pytest.raises(ValueError, match="expected"):
        singular_values(torch.zeros(8, 16))


def test_the_calibrated_score_is_the_same_either_way():
    matrix = planted(128, 300, [2.0, 4.0]).bfloat16()
    found = singular_values(matrix[None])[0][0]
    assert calibrated([found], 128, 300).score == pytest.approx(
        calibrated([values_of(matrix)], 128, 300).score, rel=1e-9
    )
