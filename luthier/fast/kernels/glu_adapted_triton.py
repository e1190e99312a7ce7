"""Gated linear unit with adapters on CUDA: a tile of rows and columns a program. See `glu_adapted.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from luthier.fast.kernels.glu_adapted import OfGateUp, OfProduct
from luthier.fast.kernels.glu_triton import activated

__all__ = ["glu_adapted", "glu_adapted_backward"]

FORWARD, BACKWARD = (4, 512, 4), (4, 512, 4)
"""(rows, columns, warps) of a tile: long runs of a row for the memory; each column of an adapter serves all rows."""


@triton.jit
def _tile(m, f, rows: tl.constexpr, block: tl.constexpr):
    """(row int64 (rows, 1), column (1, block), masks) of this program; neighbours share rows."""
    across = tl.cdiv(f, block)
    row = (tl.program_id(0) // across) * rows + tl.arange(0, rows)
    col = (tl.program_id(0) % across) * block + tl.arange(0, block)
    return row.to(tl.int64)[:, None], col[None, :], (row < m)[:, None], (col < f)[None, :]


@triton.jit
def _added(x, u_ptr, w_ptr, row, col, row_mask, col_mask, u_stride, w_stride, columns: tl.constexpr):
    """X + the product of `columns` columns of u and rows of w, one after the other."""
    for k in range(columns):
        u = tl.load(u_ptr + row * u_stride + k, mask=row_mask, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + k * w_stride + col, mask=col_mask, other=0.0).to(tl.float32)
        x = tl.fma(tl.broadcast_to(u, x.shape), tl.broadcast_to(w, x.shape), x)
    return x


@triton.jit
def _completed(
    x_ptr, u_ptr, b_ptr, row, col, row_mask, col_mask, f, x_stride, u_stride, b_stride,
    gate_columns: tl.constexpr, up_first: tl.constexpr, up_columns: tl.constexpr,
):  # fmt: skip
    """(gate, up) of the tile in fp32; gate takes the first columns of u, up those from `up_first` on."""
    place = x_ptr + row * x_stride + col
    mask = row_mask & col_mask
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + f, mask=mask, other=0.0).to(tl.float32)
    gate = _added(gate, u_ptr, b_ptr, row, col, row_mask, col_mask, u_stride, b_stride, gate_columns)
    b_up = b_ptr + up_first * b_stride + f
    up = _added(up, u_ptr + up_first, b_up, row, col, row_mask, col_mask, u_stride, b_stride, up_columns)
    return gate, up


@triton.jit(do_not_specialize=["m"])
def _forward(
    x_ptr, u_ptr, b_ptr, out_ptr, m, f, x_stride, u_stride, b_stride, out_stride, act: tl.constexpr,
    gate_columns: tl.constexpr, up_first: tl.constexpr, up_columns: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, col, row_mask, col_mask = _tile(m, f, rows, block)
    gate, up = _completed(x_ptr, u_ptr, b_ptr, row, col, row_mask, col_mask, f, x_stride, u_stride, b_stride,
                          gate_columns, up_first, up_columns)  # fmt: skip
    value, _ = activated(gate, act)
    tl.store(out_ptr + row * out_stride + col, (value * up).to(out_ptr.dtype.element_ty), mask=row_mask & col_mask)


@triton.jit(do_not_specialize=["m"])
def _backward(
    dprod_ptr, x_ptr, u_ptr, b_ptr, v_ptr, a_ptr, out_ptr, prod_ptr, m, f,
    dprod_stride, x_stride, u_stride, b_stride, v_stride, a_stride, out_stride, prod_stride, act: tl.constexpr,
    gate_columns: tl.constexpr, up_first: tl.constexpr, up_columns: tl.constexpr, down_columns: tl.constexpr,
    with_product: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, col, row_mask, col_mask = _tile(m, f, rows, block)
    gate, up = _completed(x_ptr, u_ptr, b_ptr, row, col, row_mask, col_mask, f, x_stride, u_stride, b_stride,
                          gate_columns, up_first, up_columns)  # fmt: skip
    mask = row_mask & col_mask
    dprod = tl.load(dprod_ptr + row * dprod_stride + col, mask=mask, other=0.0).to(tl.float32)
    dprod = _added(dprod, v_ptr, a_ptr, row, col, row_mask, col_mask, v_stride, a_stride, down_columns)
    value, slope = activated(gate, act)
    dtype = out_ptr.dtype.element_ty
    place = out_ptr + row * out_stride + col
    tl.store(place, (dprod * up * slope).to(dtype), mask=mask)
    tl.store(place + f, (dprod * value).to(dtype), mask=mask)
    if with_product:
        tl.store(prod_ptr + row * prod_stride + col, (value * up).to(dtype), mask=mask)


def glu_adapted(raw: Tensor, act: str, part: OfGateUp, out: Tensor) -> Tensor:
    """As `glu_adapted.glu_adapted`."""
    m, f = raw.shape[0], raw.shape[1] // 2
    u, b, *columns = part
    b = b.t().contiguous()
    rows, block, warps = FORWARD
    _forward[(triton.cdiv(m, rows) * triton.cdiv(f, block),)](
        raw, u, b, out, m, f, raw.stride(0), u.stride(0), b.stride(0), out.stride(0),
        act, *columns, rows, block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def glu_adapted_backward(
    dprod: Tensor, raw: Tensor, act: str, up: OfGateUp | None, down: OfProduct | None, out: Tensor, prod: Tensor | None
) -> None:
    """As `glu_adapted.glu_adapted_backward`."""
    m, f = dprod.shape
    u, b, *columns = (raw, raw, 0, 0, 0) if up is None else (up.u_mp, up.b_2fp.t().contiguous(), *up[2:])
    v, a = (raw, raw) if down is None else down
    again = dprod if prod is None else prod
    rows, block, warps = BACKWARD
    _backward[(triton.cdiv(m, rows) * triton.cdiv(f, block),)](
        dprod, raw, u, b, v, a, out, again, m, f,
        dprod.stride(0), raw.stride(0), u.stride(0), b.stride(0), v.stride(0), a.stride(0), out.stride(0),
        again.stride(0), act, *columns, 0 if down is None else v.shape[1], prod is not None, rows, block,
        num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
