"""Attention's forward kernel: a program takes one tile of queries. See `attention.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["forward_kernel", "key_span", "prefix_of", "prefix_turn", "query_tile", "unseen"]

# Scores are held in units of log2(e): exp2 is one instruction.
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def query_tile(tiles_ptr, programs: tl.constexpr, pack: tl.constexpr, rows: tl.constexpr):
    """(document's first row int64, length, tile's first token, first query head, tokens, heads and validity of the
    rows) of this program; `programs` of them share a tile. Rows without a token of their own repeat the last one."""
    tile, head = tl.program_id(0) // programs, (tl.program_id(0) % programs) * pack
    start = tl.load(tiles_ptr + tile * 5).to(tl.int64)
    length = tl.load(tiles_ptr + tile * 5 + 1)
    first = tl.load(tiles_ptr + tile * 5 + 2)
    row = tl.arange(0, rows)
    token = first + row // pack
    valid = (token < length) & (row < rows // pack * pack)
    return start, length, first, head, tl.minimum(token, length - 1), row % pack, valid


@triton.jit
def prefix_of(tiles_ptr, programs: tl.constexpr):
    """(first row int64, tokens) of the prefix of this program's document."""
    at = tiles_ptr + tl.program_id(0) // programs * 5
    return tl.load(at + 3).to(tl.int64), tl.load(at + 4)


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
def prefix_turn(
    turn, begin, ahead, lead, length, token, masked, keys: tl.constexpr, windowed: tl.constexpr,
):  # fmt: skip
    """(first key, number of keys, tokens as these keys count them, whether a mask is needed, whether these keys are
    those of the prefix) of a step: the first `ahead` // `keys` steps from `begin` - `ahead` on go over the prefix."""
    inside = turn < begin
    at = tl.where(inside, turn - begin + ahead, turn)
    masked = tl.where(inside, (at + keys > lead) | windowed, masked)
    return at, tl.where(inside, lead, length), token + tl.where(inside, lead, 0), masked, inside


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
    heads: tl.constexpr, group: tl.constexpr, pack: tl.constexpr, windowed: tl.constexpr, prefixed: tl.constexpr,
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
    lead, ahead = 0, 0
    if prefixed:
        lead_start, lead = prefix_of(tiles_ptr, heads // pack)
        ahead = (lead + keys - 1) // keys * keys
        lead_k, lead_v = (lead_start - start) * k_row, (lead_start - start) * v_row
    # One loop with a branch around the mask: with two loops ptxas waits after every single tensor-core instruction.
    for turn in tl.range(begin - ahead, end, keys):
        at, limit, seer, k_from, v_from = turn, length, token, k_at, v_at
        masked = (at < edge) | (at >= whole)
        if prefixed:
            at, limit, seer, masked, inside = prefix_turn(
                turn, begin, ahead, lead, length, token, masked, keys, windowed
            )
            k_from, v_from = k_at + tl.where(inside, lead_k, 0), v_at + tl.where(inside, lead_v, 0)
        there = tl.minimum(step, limit - 1 - at)
        k = tl.load(k_from + at * k_wide + there[:, None] * k_row + col)
        s = tl.dot(q, tl.trans(k))
        if masked:
            hidden = unseen(seer[:, None], (at + step)[None, :], window, windowed)
            if prefixed:
                hidden = hidden | ((at + step)[None, :] >= limit)
            s = tl.where(hidden, -float("inf"), s)
        higher = tl.maximum(top, tl.max(s, 1) * scale2)
        shift = higher
        if windowed:  # a row may see no key of its first steps
            shift = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp2(s * scale2 - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_from + at * v_wide + there[:, None] * v_row + col)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = higher
    wide = tl.cast(tokens, tl.int64)
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    out_at = out_ptr + base * out_row + head * width
    tl.store(out_at + (near * out_row + lane * width)[:, None] + col, out, mask=valid[:, None])
    tl.store(lse_ptr + head * wide + base + lane * wide + near, (top + tl.log2(total)) * LN2, mask=valid)
