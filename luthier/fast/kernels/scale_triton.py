"""Scaling on CUDA. See `scale.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["scaled_"]


@triton.jit
def _scale(x_ptr, factor_ptr, out_ptr, count, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    product = x * tl.load(factor_ptr).to(tl.float32)
    tl.store(out_ptr + at, product.to(out_ptr.dtype.element_ty), mask=at < count)


def scaled_(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """As `scale.scaled_`."""
    out = x if x.dtype == dtype else torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        _scale[(triton.cdiv(x.numel(), 2048),)](x, factor, out, x.numel(), 2048, num_warps=8)
    return out
