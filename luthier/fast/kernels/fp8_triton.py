"""Rows in e4m3 on CUDA: a program a row, in registers; in the gated unit read again from the caches. See `fp8.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.fast.kernels.glu_triton import activated

# Elements of a thread where a program holds a whole row: enough loads in flight, no spilled register (sm_90).
WHOLE_ROW_ELEMENTS = 32

__all__ = ["glu_fp8", "inverted", "quantised", "quantize_rows"]


@triton.jit
def quantised(x, inverse):
    """x times 1 / scale as e4m3, rounded to nearest and held to the largest finite number."""
    return tl.minimum(tl.maximum(x * inverse, -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def inverted(scale):
    """1 / scale, correctly rounded."""
    return tl.div_rn(scale * 0.0 + 1.0, scale)


@triton.jit
def _scale(amax):
    return tl.where(amax == 0.0, 1.0, tl.div_rn(amax, amax * 0.0 + 448.0))


@triton.jit
def _write_row(x_ptr, q_ptr, width, scale, block: tl.constexpr):
    inverse = inverted(scale)
    for start in range(0, width, block):
        col = start + tl.arange(0, block)
        x = tl.load(x_ptr + col, mask=col < width, other=0.0).to(tl.float32)
        tl.store(q_ptr + col, quantised(x, inverse), mask=col < width)


@triton.jit
def _quantize(x_ptr, q_ptr, scale_ptr, width, x_stride, q_stride, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, block)
    x = tl.load(x_ptr + row * x_stride + col, mask=col < width, other=0.0).to(tl.float32)
    scale = _scale(tl.max(tl.abs(x), axis=0))
    tl.store(scale_ptr + row, scale)
    tl.store(q_ptr + row * q_stride + col, quantised(x, inverted(scale)), mask=col < width)


@triton.jit
def _glu(x_ptr, prod_ptr, q_ptr, scale_ptr, f, x_stride, act: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    prod_ptr += row * f
    largest = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, f, block):
        col = start + tl.arange(0, block)
        gate = tl.load(x_ptr + col, mask=col < f, other=0.0).to(tl.float32)
        up = tl.load(x_ptr + f + col, mask=col < f, other=0.0).to(tl.float32)
        value, _ = activated(gate, act)
        prod = (value * up).to(prod_ptr.dtype.element_ty)
        tl.store(prod_ptr + col, prod, mask=col < f)
        largest = tl.maximum(largest, tl.abs(prod.to(tl.float32)))
    scale = _scale(tl.max(largest, axis=0))
    tl.store(scale_ptr + row, scale)
    tl.debug_barrier()  # the row is read again by other threads than wrote it
    _write_row(prod_ptr, q_ptr + row * f, f, scale, block)


def _block(width: int) -> tuple[int, int]:
    """(columns at once, warps)."""
    block = min(4096, max(16, triton.next_power_of_2(width)))
    return block, max(1, min(8, block // 256))


def _empty(m: int, width: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty((m, width), dtype=dtype or like.dtype, device=like.device)


def quantize_rows(x_mk: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `fp8.quantize_rows`."""
    m, k = x_mk.shape
    q = _empty(m, k, x_mk, torch.float8_e4m3fn) if out is None else out
    scale = _empty(m, 1, x_mk, torch.float32)
    block = max(16, triton.next_power_of_2(k))
    warps = max(1, min(32, block // WHOLE_ROW_ELEMENTS // 32))
    _quantize[(m,)](x_mk, q, scale, k, x_mk.stride(0), q.stride(0), block, num_warps=warps)
    return q, scale


def glu_fp8(gate_up_m2f: Tensor, act: str) -> tuple[Tensor, Tensor, Tensor]:
    """As `fp8.glu_fp8`."""
    m, f = gate_up_m2f.shape[0], gate_up_m2f.shape[1] // 2
    prod, q = _empty(m, f, gate_up_m2f), _empty(m, f, gate_up_m2f, torch.float8_e4m3fn)
    scale = _empty(m, 1, gate_up_m2f, torch.float32)
    block, warps = _block(f)
    _glu[(m,)](gate_up_m2f, prod, q, scale, f, gate_up_m2f.stride(0), act, block, num_warps=warps)
    return prod, q, scale
