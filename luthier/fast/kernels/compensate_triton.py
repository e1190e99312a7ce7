"""Rounding of a block of columns on CUDA. See `compensate.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.fast.kernels.fp8_triton import inverted, quantised

__all__ = ["round_block"]


@triton.jit(do_not_specialize=["n"])
def _round_block(w_ptr, scale_ptr, factor_ptr, q_ptr, error_ptr, n, width, rows: tl.constexpr, block: tl.constexpr):
    """A program takes `rows` rows; the columns follow each other."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    col = tl.arange(0, block)
    there = (row < n)[:, None] & (col < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + col[None, :]
    left = tl.load(w_ptr + at, mask=there, other=0.0)
    scale = tl.load(scale_ptr + row, mask=row < n, other=1.0)
    inverse = inverted(scale)
    errors = tl.zeros((rows, block), dtype=tl.float32)
    for column in tl.range(0, width):
        here = (col == column)[None, :]
        value = tl.sum(tl.where(here, left, 0.0), 1)
        q = quantised(value, inverse).to(tl.float32) * scale
        error = (value - q) / tl.load(factor_ptr + column * width + column)
        ahead = tl.load(factor_ptr + column * width + col, mask=(col > column) & (col < width), other=0.0)
        left = tl.where(here, q[:, None], left - error[:, None] * ahead[None, :])
        errors = tl.where(here, error[:, None], errors)
    tl.store(q_ptr + at, quantised(left, inverse[:, None]), mask=there)
    tl.store(error_ptr + at, errors, mask=there)


def round_block(block_nb: Tensor, scale_n1: Tensor, factor_bb: Tensor) -> tuple[Tensor, Tensor]:
    """As `compensate.round_block_reference`."""
    n, width = block_nb.shape
    assert block_nb.is_contiguous() and factor_bb.is_contiguous() and scale_n1.is_contiguous()
    q = torch.empty((n, width), dtype=torch.float8_e4m3fn, device=block_nb.device)
    errors = torch.empty_like(block_nb)
    rows = 16
    _round_block[(triton.cdiv(n, rows),)](
        block_nb, scale_n1, factor_bb, q, errors, n, width, rows, triton.next_power_of_2(width), num_warps=4
    )
    return q, errors
