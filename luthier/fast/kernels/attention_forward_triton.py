"""Attention's forward kernel: a program takes one tile of queries. See `attention.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["forward_kernel", "key_spans", "query_tile", "unseen"]

# Scores are held in units of log2(e): exp2 is one instruction.
HIDDEN = tl.constexpr(-1.0e30)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def query_tile(tiles_ptr, programs: tl.constexpr, pack: tl.constexpr, rows: tl.constexpr):
    """(document's first row int64, length, tile's first token, first query head, tokens, heads and validity of the
    rows) of this program; `programs` of them share a tile. Rows without a token of their own repeat the last one."""
    tile, head = tl.program_id(0) // programs, (tl.program_id(0) % programs) * pack
    start = tl.load(tiles_ptr + tile * 4).to(tl.int64)
    length = tl.load(tiles_ptr + tile * 4 + 1)
    first = tl.load(tiles_ptr + tile * 4 + 2)
    row = tl.arange(0, rows)
    token = first + row // pack
    valid = (token < length) & (row < rows // pack * pack)
    return start, length, first, head, tl.minimum(token, length - 1), row % pack, valid


@triton.jit
def key_spans(first, length, window, size: tl.constexpr, keys: tl.constexpr, windowed: tl.constexpr, split: tl.constexpr):
    """Bounds of the keys that the tokens first..first+size-1 see: [a, b) and [c, d) need a mask, [b, c) does not."""
    end = tl.minimum(first + size, length)
    begin = first * 0
    whole = (first + 1) // keys * keys
    edge = begin
    if windowed:
        begin = tl.maximum(first - window + 1, 0) // keys * keys
        edge = tl.minimum((tl.maximum(end - window, 0) + keys - 1) // keys * keys, whole)
    if not split:
        edge, whole = begin, begin
    return begin, edge, whole, end


@triton.jit
def unseen(token, key, window, windowed: tl.constexpr):
    """Which keys a token does not see; shapes broadcast."""
    hidden = key > token
    if windowed:
        hidden = hidden | (key <= token - window)
    return hidden


@triton.jit
def _span(
    acc, total, top, q, k_ptr, v_ptr, k_row, v_row, begin, end, length, token, scale2, window,
    masked: tl.constexpr, windowed: tl.constexpr, keys: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Take the keys [begin, end) into the running sums of a tile."""
    lane, col = tl.arange(0, keys), tl.arange(0, width)[None, :]
    k_wide, v_wide = tl.cast(k_row, tl.int64), tl.cast(v_row, tl.int64)
    for at in tl.range(begin, end, keys):
        near = lane
        if masked:
            near = tl.minimum(lane, length - 1 - at)
        k = tl.load(k_ptr + at * k_wide + near[:, None] * k_row + col)
        s = tl.dot(q, tl.trans(k))
        if masked:
            s = tl.where(unseen(token[:, None], (at + lane)[None, :], window, windowed), HIDDEN, s * scale2)
            higher = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - higher[:, None])
        else:
            higher = tl.maximum(top, tl.max(s, 1) * scale2)
            p = tl.exp2(s * scale2 - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        v = tl.load(v_ptr + at * v_wide + near[:, None] * v_row + col)
        acc = tl.dot(p.to(v.dtype), v, acc)
        top = higher
    return acc, total, top


@triton.jit(do_not_specialize=["tokens", "window"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, tiles_ptr, tokens, q_row, k_row, v_row, out_row, scale2, window,
    heads: tl.constexpr, group: tl.constexpr, pack: tl.constexpr, windowed: tl.constexpr, split: tl.constexpr,
    rows: tl.constexpr, keys: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Out and lse of one tile."""
    start, length, first, head, token, lane, valid = query_tile(tiles_ptr, heads // pack, pack, rows)
    col = tl.arange(0, width)[None, :]
    near = token - first
    base = start + first
    q_at = q_ptr + base * q_row + head * width
    q = tl.load(q_at + (near * q_row + lane * width)[:, None] + col)
    k_at = k_ptr + start * k_row + head // group * width
    v_at = v_ptr + start * v_row + head // group * width
    acc = tl.zeros((rows, width), dtype=tl.float32)
    total = tl.zeros((rows,), dtype=tl.float32)
    top = tl.zeros((rows,), dtype=tl.float32) + HIDDEN
    begin, edge, whole, end = key_spans(first, length, window, rows // pack, keys, windowed, split)
    if windowed and split:
        acc, total, top = _span(acc, total, top, q, k_at, v_at, k_row, v_row, begin, edge, length, token, scale2,
                                window, True, windowed, keys, width)  # fmt: skip
    if split:
        acc, total, top = _span(acc, total, top, q, k_at, v_at, k_row, v_row, edge, whole, length, token, scale2,
                                window, False, windowed, keys, width)  # fmt: skip
    acc, total, top = _span(acc, total, top, q, k_at, v_at, k_row, v_row, whole, end, length, token, scale2,
                            window, True, windowed, keys, width)  # fmt: skip
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    out_at = out_ptr + base * out_row + head * width
    tl.store(out_at + (near * out_row + lane * width)[:, None] + col, out, mask=valid[:, None])
    lse_at = lse_ptr + head * tl.cast(tokens, tl.int64) + base
    tl.store(lse_at + lane * tl.cast(tokens, tl.int64) + near, (top + tl.log2(total)) * LN2, mask=valid)
