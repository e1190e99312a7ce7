"""Rotary embedding on CUDA: a program rotates a tile of (row, head) pairs. See `rope.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["rope", "rope_qkv_backward"]

# Elements of one half of the heads that a program holds: eight for each of 128 threads.
TILE = 1024


@triton.jit
def _load(q_ptr, k_ptr, v_ptr, q_at, k_at, v_at, shift, head, mask, heads: tl.constexpr, groups: tl.constexpr):
    """Columns `shift` and on of the pair's head, out of the tensor that holds it; a masked load moves nothing."""
    if groups == 0:
        x = tl.load(q_ptr + q_at + shift, mask=mask, other=0.0).to(tl.float32)
    else:
        is_q, is_v = (head < heads)[:, None], (head >= heads + groups)[:, None]
        is_k = (head >= heads)[:, None] & (head < heads + groups)[:, None]
        q = tl.load(q_ptr + q_at + shift, mask=mask & is_q, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + k_at + shift, mask=mask & is_k, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + v_at + shift, mask=mask & is_v, other=0.0).to(tl.float32)
        x = tl.where(is_q, q, tl.where(is_v, v, k))
    return x


@triton.jit(do_not_specialize=["pairs"])
def _rope(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, out_ptr, pairs,
    q_row, q_head, k_row, k_head, v_row, v_head, cos_row, sin_row, out_row, out_head,
    heads: tl.constexpr, groups: tl.constexpr, half: tl.constexpr, rest: tl.constexpr, inverse: tl.constexpr,
    tile: tl.constexpr, block: tl.constexpr, rest_block: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0) * tile + tl.arange(0, tile)
    row, head = (pair // (heads + 2 * groups)).to(tl.int64), pair % (heads + 2 * groups)
    inside = (pair < pairs)[:, None]
    q_at = (row * q_row + head * q_head)[:, None]
    k_at = (row * k_row + (head - heads) * k_head)[:, None]
    v_at = (row * v_row + (head - heads - groups) * v_head)[:, None]
    out_at = (row * out_row + head * out_head)[:, None]
    cos_at, sin_at = (row * cos_row)[:, None], (row * sin_row)[:, None]
    col = tl.arange(0, block)[None, :]
    mask = inside & (col < half)
    x1 = _load(q_ptr, k_ptr, v_ptr, q_at, k_at, v_at, col, head, mask, heads, groups)
    x2 = _load(q_ptr, k_ptr, v_ptr, q_at, k_at, v_at, col + half, head, mask, heads, groups)
    c1 = tl.load(cos_ptr + cos_at + col, mask=mask, other=0.0).to(tl.float32)
    c2 = tl.load(cos_ptr + cos_at + col + half, mask=mask, other=0.0).to(tl.float32)
    s1 = tl.load(sin_ptr + sin_at + col, mask=mask, other=0.0).to(tl.float32)
    s2 = tl.load(sin_ptr + sin_at + col + half, mask=mask, other=0.0).to(tl.float32)
    if inverse:
        y1, y2 = x1 * c1 + x2 * s2, x2 * c2 - x1 * s1
    else:
        y1, y2 = x1 * c1 - x2 * s1, x2 * c2 + x1 * s2
    if groups > 0:
        is_v = (head >= heads + groups)[:, None]
        y1, y2 = tl.where(is_v, x1, y1), tl.where(is_v, x2, y2)
    tl.store(out_ptr + out_at + col, y1.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + out_at + col + half, y2.to(out_ptr.dtype.element_ty), mask=mask)
    if rest > 0:
        more = tl.arange(0, rest_block)[None, :]
        mask = inside & (more < rest)
        x = _load(q_ptr, k_ptr, v_ptr, q_at, k_at, v_at, more + 2 * half, head, mask, heads, groups)
        tl.store(out_ptr + out_at + more + 2 * half, x.to(out_ptr.dtype.element_ty), mask=mask)


def _run(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, out: Tensor, out_strides: tuple[int, int],
    heads: int, groups: int, inverse: bool, copy_rest: bool,
) -> None:  # fmt: skip
    half, width = cos.shape[1] // 2, q.shape[2]
    block = max(8, triton.next_power_of_2(half))
    tile = max(1, TILE // block)
    pairs = q.shape[0] * (heads + 2 * groups)
    assert pairs < 2**31, "split the rows: a (row, head) pair is counted in 32 bits"
    rest = width - 2 * half if copy_rest else 0
    _rope[(triton.cdiv(pairs, tile),)](
        q, k, v, cos, sin, out, pairs,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        cos.stride(0), sin.stride(0), *out_strides,
        heads, groups, half, rest, inverse, tile, block, triton.next_power_of_2(max(1, rest)), num_warps=4,
    )  # fmt: skip


def rope(x_mhk: Tensor, cos_mr: Tensor, sin_mr: Tensor, inverse: bool, out_mhk: Tensor | None) -> Tensor:
    """As `rope.rope`."""
    out = torch.empty(x_mhk.shape, dtype=x_mhk.dtype, device=x_mhk.device) if out_mhk is None else out_mhk
    in_place = out_mhk is not None and out_mhk.data_ptr() == x_mhk.data_ptr()
    strides = (out.stride(0), out.stride(1))
    _run(x_mhk, x_mhk, x_mhk, cos_mr, sin_mr, out, strides, x_mhk.shape[1], 0, inverse, not in_place)
    return out


def rope_qkv_backward(
    dq_mhk: Tensor, dk_mgk: Tensor, dv_mgk: Tensor, cos_mr: Tensor, sin_mr: Tensor, out_m: Tensor
) -> Tensor:
    """As `rope.rope_qkv_backward`."""
    strides = (out_m.stride(0), dq_mhk.shape[2])
    _run(dq_mhk, dk_mgk, dv_mgk, cos_mr, sin_mr, out_m, strides, dq_mhk.shape[1], dk_mgk.shape[1], True, True)
    return out_m
