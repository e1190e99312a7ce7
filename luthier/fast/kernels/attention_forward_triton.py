"""Attention's forward kernel: a program takes one tile of queries. See `attention.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["forward_kernel", "key_span", "query_tile", "unseen"]

# Scores are held in units of log2(e): exp2 is one instruction.
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
def key_span(first, length, window, size: tl.constexpr, keys: tl.constexpr, windowed: tl.constexpr):
    """(begin, edge, whole, end): the tokens first..first+size-1 see keys of [begin, end); steps of `keys` that lie in
    [edge, whole) need no mask."""
    end = tl.minimum(first + size, length)
    whole = (first + 1) // keys * keys
    begin = first * 0
    edge = begin
    if windowed:
        begin = tl.maximum(first - window + 1, 0) // keys * keys
        edge = (tl.maximum(end - window, 0) + keys - 1) // keys * keys
    return begin, edge, whole, end


@triton.jit
def unseen(token, key, window, windowed: tl.constexpr):
    """Which keys a token does not see; shapes broadcast."""
    hidden = key > token
    if windowed:
        hidden = hidden | (key <= token - window)
    return hidden


@triton.jit(do_not_specialize=["tokens", "window"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, tiles_ptr, tokens, q_row, k_row, v_row, out_row, scale2, window,
    heads: tl.constexpr, group: tl.constexpr, pack: tl.constexpr, windowed: tl.constexpr,
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
    top = tl.zeros((rows,), dtype=tl.float32) - float("inf")
    step = tl.arange(0, keys)
    k_wide, v_wide = tl.cast(k_row, tl.int64), tl.cast(v_row, tl.int64)
    begin, edge, whole, end = key_span(first, length, window, rows // pack, keys, windowed)
    # One loop with a branch around the mask: with two loops ptxas waits after every single tensor-core instruction.
    for at in tl.range(begin, end, keys):
        there = tl.minimum(step, length - 1 - at)
        k = tl.load(k_at + at * k_wide + there[:, None] * k_row + col)
        s = tl.dot(q, tl.trans(k))
        if (at < edge) | (at >= whole):
            s = tl.where(unseen(token[:, None], (at + step)[None, :], window, windowed), -float("inf"), s)
        higher = tl.maximum(top, tl.max(s, 1) * scale2)
        shift = higher
        if windowed:  # a row may see no key of its first steps
            shift = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp2(s * scale2 - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_at + at * v_wide + there[:, None] * v_row + col)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = higher
    wide = tl.cast(tokens, tl.int64)
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    out_at = out_ptr + base * out_row + head * width
    tl.store(out_at + (near * out_row + lane * width)[:, None] + col, out, mask=valid[:, None])
    tl.store(lse_ptr + head * wide + base + lane * wide + near, (top + tl.log2(total)) * LN2, mask=valid)
