"""Attention over pages on CUDA. See `kernels.py` for what is computed.

One new token a row (`_decode`): a program reads a share of one row's pages for all query heads of one key/value
head; shares are put together by `_combine`. Nothing on the host depends on the lengths, so a CUDA graph that was
recorded at one length is right at every other.
More new tokens (`_prefill`): a program has a block of queries of one head and walks the pages it can see.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.generation.paged.pool import PAGE_TOKENS

if TYPE_CHECKING:
    from luthier.generation.paged.kernels import Look

__all__ = ["attend", "write"]

# Enough programs to fill 132 multiprocessors twice; more shares than this are not worth their sums.
WANTED_PROGRAMS, MAX_SHARES = 264, 32
BLOCK_QUERIES = 64


@triton.jit
def _write(k_ptr, v_ptr, keys_ptr, values_ptr, at_ptr, k_n, k_h, v_n, v_h,
           heads: tl.constexpr, d: tl.constexpr, block: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    at = tl.load(at_ptr + n)
    col = tl.arange(0, block)
    head = col // d
    inside = col < heads * d
    k = tl.load(k_ptr + n * k_n + head * k_h + col % d, mask=inside)
    v = tl.load(v_ptr + n * v_n + head * v_h + col % d, mask=inside)
    tl.store(keys_ptr + at * (heads * d) + col, k, mask=inside)
    tl.store(values_ptr + at * (heads * d) + col, v, mask=inside)


@triton.jit
def _decode(
    q_ptr, keys_ptr, values_ptr, out_ptr, part_ptr, sums_ptr, slots_ptr, tables_ptr, lengths_ptr,
    scale, softcap, window, width, q_n, q_h,
    heads: tl.constexpr, groups: tl.constexpr, d: tl.constexpr, shares: tl.constexpr,
    has_window: tl.constexpr, has_cap: tl.constexpr, ieee: tl.constexpr,
    rows_g: tl.constexpr, block_d: tl.constexpr, page: tl.constexpr,
):  # fmt: skip
    row, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + row)
    slot = tl.load(slots_ptr + row)
    g = tl.arange(0, rows_g)
    col = tl.arange(0, block_d)
    token = tl.arange(0, page)
    q_mask = (g < groups)[:, None] & (col < d)[None, :]
    q = tl.load(
        q_ptr + row.to(tl.int64) * q_n + (head * groups + g)[:, None] * q_h + col[None, :], mask=q_mask, other=0.0
    )
    first = 0
    if has_window:
        first = tl.maximum(length - window, 0)
    first_page = first // page
    pages = (length + page - 1) // page - first_page
    each = (pages + shares - 1) // shares
    start = first_page + share * each
    end = tl.minimum(start + each, first_page + pages)
    most = tl.full([rows_g], float("-inf"), tl.float32)
    total = tl.zeros([rows_g], tl.float32)
    acc = tl.zeros([rows_g, block_d], tl.float32)
    for number in range(start, end):
        at = tl.load(tables_ptr + slot * width + number).to(tl.int64) * page
        position = number * page + token
        seen = position < length
        if has_window:
            seen = seen & (position >= first)
        place = (at + token)[:, None] * (heads * d) + head * d + col[None, :]
        inside = seen[:, None] & (col < d)[None, :]
        k = tl.load(keys_ptr + place, mask=inside, other=0.0)
        v = tl.load(values_ptr + place, mask=inside, other=0.0)
        if ieee:  # noqa: SIM108
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        else:
            score = tl.dot(q, tl.trans(k)) * scale
        if has_cap:
            score = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * score / softcap)))
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, axis=1))
        shrink = tl.exp(most - higher)
        p = tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        if ieee:
            acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        most = higher
    if shares == 1:
        result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        out = out_ptr + (row * heads * groups + head * groups + g)[:, None] * d + col[None, :]
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=q_mask)
    else:
        line = ((row * heads + head) * groups + g) * shares + share
        tl.store(part_ptr + line[:, None] * d + col[None, :], acc, mask=q_mask)
        tl.store(sums_ptr + line * 2, most, mask=g < groups)
        tl.store(sums_ptr + line * 2 + 1, total, mask=g < groups)


@triton.jit
def _combine(part_ptr, sums_ptr, out_ptr, d: tl.constexpr, shares: tl.constexpr, block_d: tl.constexpr):
    line = tl.program_id(0)
    share = tl.arange(0, shares)
    col = tl.arange(0, block_d)
    inside = (share[:, None] >= 0) & (col < d)[None, :]
    most = tl.load(sums_ptr + (line * shares + share) * 2)
    total = tl.load(sums_ptr + (line * shares + share) * 2 + 1)
    highest = tl.max(most, axis=0)
    weight = tl.where(total > 0.0, tl.exp(most - highest), 0.0)
    part = tl.load(part_ptr + (line * shares + share)[:, None] * d + col[None, :], mask=inside, other=0.0)
    whole = tl.sum(weight * total, axis=0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.where(whole > 0.0, whole, 1.0)
    tl.store(out_ptr + line * d + col, result.to(out_ptr.dtype.element_ty), mask=col < d)


@triton.jit
def _prefill(
    q_ptr, keys_ptr, values_ptr, out_ptr, slots_ptr, tables_ptr, lengths_ptr, starts_ptr,
    scale, softcap, window, width, q_n, q_h,
    heads: tl.constexpr, groups: tl.constexpr, d: tl.constexpr,
    has_window: tl.constexpr, has_cap: tl.constexpr, ieee: tl.constexpr,
    block_q: tl.constexpr, block_d: tl.constexpr, page: tl.constexpr,
):  # fmt: skip
    block, row, q_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(starts_ptr + row)
    new = tl.load(starts_ptr + row + 1) - begin
    if block * block_q >= new:
        return
    head = q_head // groups
    length = tl.load(lengths_ptr + row)
    slot = tl.load(slots_ptr + row)
    index = block * block_q + tl.arange(0, block_q)
    at_query = (length - new) + index
    col = tl.arange(0, block_d)
    token = tl.arange(0, page)
    q_mask = (index < new)[:, None] & (col < d)[None, :]
    line = (begin + index).to(tl.int64)
    q = tl.load(q_ptr + line[:, None] * q_n + q_head * q_h + col[None, :], mask=q_mask, other=0.0)
    last = tl.minimum((length - new) + (block + 1) * block_q, length)
    first_page = 0
    if has_window:
        first_page = tl.maximum((length - new) + block * block_q - window + 1, 0) // page
    most = tl.full([block_q], float("-inf"), tl.float32)
    total = tl.zeros([block_q], tl.float32)
    acc = tl.zeros([block_q, block_d], tl.float32)
    for number in range(first_page, (last + page - 1) // page):
        at = tl.load(tables_ptr + slot * width + number).to(tl.int64) * page
        position = number * page + token
        place = (at + token)[:, None] * (heads * d) + head * d + col[None, :]
        inside = (position < length)[:, None] & (col < d)[None, :]
        k = tl.load(keys_ptr + place, mask=inside, other=0.0)
        v = tl.load(values_ptr + place, mask=inside, other=0.0)
        if ieee:  # noqa: SIM108
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        else:
            score = tl.dot(q, tl.trans(k)) * scale
        if has_cap:
            score = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * score / softcap)))
        seen = position[None, :] <= at_query[:, None]
        if has_window:
            seen = seen & (position[None, :] > at_query[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, axis=1))
        # A query may see nothing of a page (its window begins later): minus infinity minus itself is no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(most - base)
        p = tl.exp(score - base[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        if ieee:
            acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        most = higher
    result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out = out_ptr + line[:, None] * (heads * groups * d) + q_head * d + col[None, :]
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=q_mask)


def write(keys: Tensor, values: Tensor, at: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> None:
    """One launch for both."""
    n, heads, d = k_nhd.shape
    if k_nhd.stride(2) != 1 or v_nhd.stride(2) != 1:
        k_nhd, v_nhd = k_nhd.contiguous(), v_nhd.contiguous()
    _write[(n,)](
        k_nhd, v_nhd, keys, values, at, k_nhd.stride(0), k_nhd.stride(1), v_nhd.stride(0), v_nhd.stride(1),
        heads=heads, d=d, block=triton.next_power_of_2(heads * d),
    )  # fmt: skip


def attend(
    q_nqd: Tensor, keys: Tensor, values: Tensor, look: Look, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Outputs (N, Q, D), contiguous."""
    if q_nqd.stride(2) != 1:
        q_nqd = q_nqd.contiguous()
    out = torch.empty(q_nqd.shape, dtype=q_nqd.dtype, device=q_nqd.device)
    settings = {
        "scale": scale, "softcap": softcap or 0.0, "window": window or 0, "width": look.tables.stride(0),
        "q_n": q_nqd.stride(0), "q_h": q_nqd.stride(1), "heads": keys.shape[1],
        "groups": q_nqd.shape[1] // keys.shape[1], "d": q_nqd.shape[2], "has_window": window is not None,
        "has_cap": softcap is not None, "ieee": q_nqd.dtype is torch.float32,
        "block_d": max(16, triton.next_power_of_2(q_nqd.shape[2])), "page": PAGE_TOKENS,
    }  # fmt: skip
    if look.longest == 1:
        _decode_rows(q_nqd, keys, values, out, look, settings)
        return out
    narrow = q_nqd.shape[2] > 128 or q_nqd.dtype is torch.float32
    block_q = BLOCK_QUERIES // 2 if narrow else BLOCK_QUERIES
    grid = (triton.cdiv(look.longest, block_q), look.slots.shape[0], q_nqd.shape[1])
    _prefill[grid](
        q_nqd, keys, values, out, look.slots, look.tables, look.lengths, look.starts, **settings, block_q=block_q,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


def _decode_rows(q: Tensor, keys: Tensor, values: Tensor, out: Tensor, look: Look, settings: dict[str, object]) -> None:
    rows, (q_heads, d), heads = look.slots.shape[0], q.shape[1:], keys.shape[1]
    wanted = triton.next_power_of_2(max(1, WANTED_PROGRAMS // (rows * heads)))
    shares = min(MAX_SHARES, wanted)
    part, sums = out, out
    if shares > 1:
        part = torch.empty(rows, q_heads, shares, d, dtype=torch.float32, device=q.device)
        sums = torch.empty(rows, q_heads, shares, 2, dtype=torch.float32, device=q.device)
    _decode[(rows, heads, shares)](
        q, keys, values, out, part, sums, look.slots, look.tables, look.lengths, **settings, shares=shares,
        rows_g=max(16, triton.next_power_of_2(q_heads // heads)), num_warps=4, num_stages=3,
    )  # fmt: skip
    if shares > 1:
        _combine[(rows * q_heads,)](part, sums, out, d=d, shares=shares, block_d=triton.next_power_of_2(d), num_warps=4)
