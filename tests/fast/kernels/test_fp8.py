"""Contract: rows in e4m3 are the nearest numbers on the row's grid, and the fused ops give the same copy."""

from __future__ import annotations

import pytest
import torch

from luthier.fast.kernels.fp8 import add_rms_norm_fp8, glu_fp8, quantize_rows
from luthier.fast.kernels.glu import glu
from luthier.fast.kernels.norm import add_rms_norm
from tests.fast.kernels.plain import wide

# Every finite e4m3 number, from its bits.
GRID = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
GRID = GRID[GRID.isfinite()]


def rows(width=48, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = wide(6, width, 16, generator=generator, dtype=dtype)
    x[1] *= 1e-4
    x[2] *= 3e3
    x[3] = 0.0
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_value_is_the_nearest_number_of_the_grid_and_the_largest_is_448(dtype):
    x = rows(dtype=dtype)
    room = torch.zeros(6, 64, dtype=torch.uint8).view(torch.float8_e4m3fn)
    q, scale = quantize_rows(x, out=room[:, :48])
    assert q.data_ptr() == room.data_ptr()
    assert (q.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, (6, 1))
    assert scale[3] == 1.0
    assert torch.equal(scale[:3], x[:3].float().abs().amax(dim=1, keepdim=True) / 448)
    exact = x.double() / scale.double()
    best = (exact[..., None] - GRID).abs().amin(dim=-1)
    mine = (exact - q.double()).abs()
    assert (mine - best).max() <= 1e-4
    assert (q.double().abs().amax(dim=1)[[0, 1, 2, 4, 5]] == 448).all()


def test_fused_ops_give_the_plain_result_and_its_quantised_copy():
    x, weight = rows(), torch.randn(48, generator=torch.Generator().manual_seed(1)).bfloat16()
    *normed, q, scale = add_rms_norm_fp8(x, weight, eps=1e-5, residual_md=x)
    for got, want in zip(normed, add_rms_norm(x, weight, eps=1e-5, residual_md=x), strict=True):
        assert torch.equal(got, want)
    _same_copy(q, scale, normed[0])
    prod, q, scale = glu_fp8(x, "silu")
    assert torch.equal(prod, glu(x, "silu"))
    _same_copy(q, scale, prod)


def _same_copy(q, scale, values):
    want_q, want_scale = quantize_rows(values)
    assert torch.equal(scale, want_scale)
    assert torch.equal(q.view(torch.uint8), want_q.view(torch.uint8))
