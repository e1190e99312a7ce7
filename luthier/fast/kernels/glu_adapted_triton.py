"""Gated linear unit with adapters on CUDA: a tile of rows and columns a program. See `glu_adapted.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from luthier.fast.kernels.glu_triton import activated

__all__ = ["glu_adapted", "glu_adapted_backward"]

FORWARD, BACKWARD = (32, 128, 4), (32, 128, 4)
"""(rows, columns, warps) of a tile: long runs of a row for the memory, few rows so that registers suffice."""


@triton.jit
def _tile(m, f, rows: tl.constexpr, block: tl.constexpr):
    """(rows, columns) of this program; programs next to each other share rows, as the matrix lies in memory."""
    across = tl.cdiv(f, block)
    row = (tl.program_id(0) // across) * rows + tl.arange(0, rows)
    col = (tl.program_id(0) % across) * block + tl.arange(0, block)
    return row, col


@triton.jit
def _factor(ptr, row, stride, inside, p, width: tl.constexpr):
    """(rows, width) of a thin matrix with dense columns; zero beyond `p`."""
    part = tl.arange(0, width)
    mask = inside[:, None] & (part < p)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + part[None, :], mask=mask, other=0.0)


@triton.jit
def _completed(
    x_ptr, u_ptr, b_ptr, row, col, m, f, x_stride, u_stride, b_stride, p,
    with_up: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """(gate, up) of the tile in fp32."""
    mask = (row < m)[:, None] & (col < f)[None, :]
    place = x_ptr + row.to(tl.int64)[:, None] * x_stride + col[None, :]
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + f, mask=mask, other=0.0).to(tl.float32)
    if with_up:
        u = _factor(u_ptr, row, u_stride, row < m, p, width)
        b_gate = _factor(b_ptr, col, b_stride, col < f, p, width)
        b_up = _factor(b_ptr, col + f, b_stride, col < f, p, width)
        gate = tl.dot(u, tl.trans(b_gate), gate, input_precision="ieee")
        up = tl.dot(u, tl.trans(b_up), up, input_precision="ieee")
    return gate, up


@triton.jit(do_not_specialize=["m", "p"])
def _forward(
    x_ptr, u_ptr, b_ptr, out_ptr, m, f, p, x_stride, u_stride, b_stride, out_stride,
    act: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, col = _tile(m, f, rows, block)
    gate, up = _completed(x_ptr, u_ptr, b_ptr, row, col, m, f, x_stride, u_stride, b_stride, p, True, width)
    value, _ = activated(gate, act)
    mask = (row < m)[:, None] & (col < f)[None, :]
    place = out_ptr + row.to(tl.int64)[:, None] * out_stride + col[None, :]
    tl.store(place, (value * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m", "p", "q"])
def _backward(
    dprod_ptr, x_ptr, u_ptr, b_ptr, v_ptr, a_ptr, out_ptr, prod_ptr, m, f, p, q,
    dprod_stride, x_stride, u_stride, b_stride, v_stride, a_stride, out_stride, prod_stride,
    act: tl.constexpr, with_up: tl.constexpr, with_down: tl.constexpr, with_product: tl.constexpr,
    width: tl.constexpr, down_width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, col = _tile(m, f, rows, block)
    gate, up = _completed(x_ptr, u_ptr, b_ptr, row, col, m, f, x_stride, u_stride, b_stride, p, with_up, width)
    mask = (row < m)[:, None] & (col < f)[None, :]
    row64 = row.to(tl.int64)[:, None]
    dprod = tl.load(dprod_ptr + row64 * dprod_stride + col[None, :], mask=mask, other=0.0).to(tl.float32)
    if with_down:
        v = _factor(v_ptr, row, v_stride, row < m, q, down_width)
        part = tl.arange(0, down_width)
        inside = (part < q)[:, None] & (col < f)[None, :]
        a = tl.load(a_ptr + part.to(tl.int64)[:, None] * a_stride + col[None, :], mask=inside, other=0.0)
        dprod = tl.dot(v, a, dprod, input_precision="ieee")
    value, slope = activated(gate, act)
    dtype = out_ptr.dtype.element_ty
    place = out_ptr + row64 * out_stride + col[None, :]
    tl.store(place, (dprod * up * slope).to(dtype), mask=mask)
    tl.store(place + f, (dprod * value).to(dtype), mask=mask)
    if with_product:
        tl.store(prod_ptr + row64 * prod_stride + col[None, :], (value * up).to(dtype), mask=mask)


def _width(columns: int) -> int:
    return max(16, int(triton.next_power_of_2(columns)))


def glu_adapted(raw: Tensor, act: str, u: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """As `glu_adapted.glu_adapted`."""
    m, f, p = raw.shape[0], raw.shape[1] // 2, u.shape[1]
    rows, block, warps = FORWARD
    _forward[(triton.cdiv(m, rows) * triton.cdiv(f, block),)](
        raw, u, b, out, m, f, p, raw.stride(0), u.stride(0), b.stride(0), out.stride(0),
        act, _width(p), rows, block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def glu_adapted_backward(
    dprod: Tensor, raw: Tensor, act: str, up: tuple[Tensor, Tensor] | None, down: tuple[Tensor, Tensor] | None,
    out: Tensor, prod: Tensor | None,
) -> None:  # fmt: skip
    """As `glu_adapted.glu_adapted_backward`."""
    m, f = dprod.shape
    u, b = (raw, raw) if up is None else up
    v, a = (raw, raw) if down is None else down
    p, q = (0 if up is None else u.shape[1]), (0 if down is None else v.shape[1])
    again = dprod if prod is None else prod
    rows, block, warps = BACKWARD
    _backward[(triton.cdiv(m, rows) * triton.cdiv(f, block),)](
        dprod, raw, u, b, v, a, out, again, m, f, p, q,
        dprod.stride(0), raw.stride(0), u.stride(0), b.stride(0), v.stride(0), a.stride(0), out.stride(0),
        again.stride(0), act, up is not None, down is not None, prod is not None, _width(p), _width(q),
        rows, block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
