"""Gated linear unit on CUDA: a program takes a tile of rows and columns. See `glu.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["glu", "glu_backward"]

# Elements of a program of 128 threads: 16 bytes of each tensor a thread, twice in the forward pass.
FORWARD_TILE, BACKWARD_TILE = 2048, 1024


@triton.jit
def activated(x, act: tl.constexpr):
    """act(x) and its derivative, in fp32: both are cheap once the sigmoid or the error function is there."""
    if act == "silu":
        s = tl.sigmoid(x)
        value, slope = x * s, s * (1.0 + x * (1.0 - s))
    elif act == "gelu_tanh":
        # 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        value = x * s
        slope = s + value * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        tl.static_assert(act == "gelu")
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value, slope = x * cdf, cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return value, slope


@triton.jit
def _tile(m, f, rows: tl.constexpr, block: tl.constexpr):
    """(row int64 (rows, 1), column (1, block), mask) of this program; programs next to each other share rows."""
    across = tl.cdiv(f, block)
    row = (tl.program_id(0) // across) * rows + tl.arange(0, rows)
    col = (tl.program_id(0) % across) * block + tl.arange(0, block)
    return row.to(tl.int64)[:, None], col[None, :], (row < m)[:, None] & (col < f)[None, :]


@triton.jit(do_not_specialize=["m"])
def _forward(x_ptr, out_ptr, m, f, x_stride, out_stride, act: tl.constexpr, rows: tl.constexpr, block: tl.constexpr):
    row, col, mask = _tile(m, f, rows, block)
    gate = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + f + col, mask=mask, other=0.0).to(tl.float32)
    value, _ = activated(gate, act)
    tl.store(out_ptr + row * out_stride + col, (value * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m"])
def _backward(
    dprod_ptr, x_ptr, out_ptr, prod_ptr, m, f, dprod_stride, x_stride, out_stride, prod_stride,
    act: tl.constexpr, with_product: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, col, mask = _tile(m, f, rows, block)
    gate = tl.load(x_ptr + row * x_stride + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + f + col, mask=mask, other=0.0).to(tl.float32)
    dprod = tl.load(dprod_ptr + row * dprod_stride + col, mask=mask, other=0.0).to(tl.float32)
    value, slope = activated(gate, act)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + row * out_stride + col, (dprod * up * slope).to(dtype), mask=mask)
    tl.store(out_ptr + row * out_stride + f + col, (dprod * value).to(dtype), mask=mask)
    if with_product:
        tl.store(prod_ptr + row * prod_stride + col, (value * up).to(prod_ptr.dtype.element_ty), mask=mask)


@cache
def _shape(f: int, elements: int) -> tuple[int, int]:
    """(rows, columns) of a tile of `elements`: the widest columns that leave at most 5% of their lanes idle."""
    fitting = (b for b in (1024, 512, 256) if -(-f // b) * b <= 1.05 * f)
    block = next(fitting, min(256, max(16, triton.next_power_of_2(f))))
    return elements // block, block


def glu(gate_up_m2f: Tensor, act: str, out_mf: Tensor | None) -> Tensor:
    """As `glu.glu`."""
    m, f = gate_up_m2f.shape[0], gate_up_m2f.shape[1] // 2
    out = torch.empty((m, f), dtype=gate_up_m2f.dtype, device=gate_up_m2f.device) if out_mf is None else out_mf
    rows, block = _shape(f, FORWARD_TILE)
    _forward[(triton.cdiv(m, rows) * triton.cdiv(f, block),)](
        gate_up_m2f,
        out,
        m,
        f,
        gate_up_m2f.stride(0),
        out.stride(0),
        act,
        rows,
        block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


def glu_backward(
    dprod_mf: Tensor, gate_up_m2f: Tensor, act: str, out_m2f: Tensor | None, prod_out_mf: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """As `glu.glu_backward`."""
    m, f = dprod_mf.shape
    x = gate_up_m2f
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out_m2f is None else out_m2f
    prod = dprod_mf if prod_out_mf is None else prod_out_mf
    rows, block = _shape(f, BACKWARD_TILE)
    _backward[(triton.cdiv(m, rows) * triton.cdiv(f, block),)](
        dprod_mf, x, out, prod, m, f, dprod_mf.stride(0), x.stride(0), out.stride(0), prod.stride(0),
        act, prod_out_mf is not None, rows, block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out, prod_out_mf
