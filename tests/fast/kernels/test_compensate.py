"""Contract: rounding fitted to inputs stays on the grid of 8-bit floats, errs less on those inputs than rounding to
nearest, and is rounding to nearest where inputs say nothing.

Planted and seen to fail: errors spread with the wrong sign; the scale of another row.
"""

from __future__ import annotations

import pytest
import torch

from luthier.fast.kernels import compensate
from luthier.fast.kernels.compensate import compensated_rows, output_error
from luthier.fast.kernels.fp8 import quantize_rows_reference


def case(n=48, k=150, seed=0, rows=400):
    made = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=made) * torch.logspace(0, -2, k)
    inputs = torch.randn(rows, k, generator=made) @ mix + 0.5 * torch.randn(k, generator=made)
    weight = torch.randn(n, k, generator=made) * torch.logspace(0, 2, n)[:, None]
    return weight, inputs


@pytest.mark.parametrize("seed", range(3))
def test_errs_less_on_the_inputs_it_was_fitted_to_and_on_others_like_them(seed):
    weight, inputs = case(seed=seed, rows=800)
    fitted, others = inputs[:400], inputs[400:]
    q, scale = compensated_rows(weight, fitted.t() @ fitted)
    plain = quantize_rows_reference(weight)
    for rows, share in ((fitted, 0.6), (others, 0.8)):
        gram = rows.t() @ rows
        direct = ((rows @ (weight - q.float() * scale).t()) ** 2).sum()
        torch.testing.assert_close(output_error(weight, q, scale, gram), direct, rtol=1e-3, atol=1e-6)
        assert output_error(weight, q, scale, gram).sqrt() < share * output_error(weight, *plain, gram).sqrt()


def test_each_value_is_near_its_weight():
    weight, inputs = case()
    q, scale = compensated_rows(weight, inputs.t() @ inputs)
    assert q.dtype == torch.float8_e4m3fn and q.shape == weight.shape and q.is_contiguous()
    torch.testing.assert_close(scale[:, 0], weight.abs().amax(1) / 448)
    assert ((weight - q.float() * scale).norm() / weight.norm()) < 0.2


@pytest.mark.parametrize("width", [1, 63, 64, 65, 130])
def test_inputs_that_know_no_direction_give_rounding_to_nearest(width):
    weight, _ = case(k=width)
    q, scale = compensated_rows(weight, 3.0 * torch.eye(width))
    want, want_scale = quantize_rows_reference(weight)
    torch.testing.assert_close(scale, want_scale)
    assert torch.equal(q.float(), want.float())


def test_inputs_without_use_are_told():
    weight, _ = case()
    assert compensated_rows(weight, torch.zeros(150, 150)) is None
    assert compensated_rows(weight, torch.full((150, 150), float("nan"))) is None


def test_fewer_inputs_than_columns_are_damped():
    weight, inputs = case(rows=20)
    gram = inputs.t() @ inputs
    assert output_error(weight, *compensated_rows(weight, gram), gram) < output_error(
        weight, *quantize_rows_reference(weight), gram
    )


def test_a_row_of_zeros_stays_zero():
    weight, inputs = case()
    weight[3] = 0.0
    q, scale = compensated_rows(weight, inputs.t() @ inputs)
    assert scale[3] == 1.0 and not q[3].float().any()


@pytest.mark.parametrize("planted", ["sign", "scale"])
def test_a_planted_bug_is_seen(monkeypatch, planted):
    weight, inputs = case()
    gram = inputs.t() @ inputs
    right = compensate.round_block_reference

    def wrong(block, scale, factor):
        if planted == "sign":
            factor = factor * (2.0 * torch.eye(len(factor)) - 1.0)
        return right(block, scale.roll(1, 0) if planted == "scale" else scale, factor)

    monkeypatch.setattr(compensate, "_round_block", wrong)
    q, scale = compensated_rows(weight, gram)
    assert (
        output_error(weight, q, scale, gram).sqrt()
        > output_error(weight, *quantize_rows_reference(weight), gram).sqrt()
    )


def test_columns_come_back_in_their_own_order():
    """In the order of their energy, each value would be that of another column."""
    weight, inputs = case()
    q, scale = compensated_rows(weight, inputs.t() @ inputs)
    off = ((weight - q.float() * scale).norm(dim=0) / weight.norm(dim=0)).max()
    assert off < 0.5
