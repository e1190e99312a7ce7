"""Attention's gradient: one kernel for dq (and delta), one for dk and dv. See `attention.py` for what is computed."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from luthier.fast.kernels.attention_forward_triton import key_span, prefix_of, prefix_turn, query_tile, unseen

__all__ = ["dkdv_kernel", "dq_kernel"]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _store(
    x, out_at, offset, mask, cos_at, sin_at, rotated: tl.constexpr, rows: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Write `x`, rotated back. Offsets (rows, 1): `cos_at` and `sin_at` point at the rows' tables."""
    half: tl.constexpr = width // 2
    dtype = out_at.dtype.element_ty
    if rotated:
        col = tl.arange(0, half)[None, :]
        x1, x2 = tl.split(tl.permute(tl.reshape(x, (rows, 2, half)), (0, 2, 1)))
        c1, c2 = tl.load(cos_at + col).to(tl.float32), tl.load(cos_at + col + half).to(tl.float32)
        s1, s2 = tl.load(sin_at + col).to(tl.float32), tl.load(sin_at + col + half).to(tl.float32)
        tl.store(out_at + offset + col, (x1 * c1 + x2 * s2).to(dtype), mask=mask)
        tl.store(out_at + offset + col + half, (x2 * c2 - x1 * s1).to(dtype), mask=mask)
    else:
        tl.store(out_at + offset + tl.arange(0, width)[None, :], x.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["tokens", "window"])
def dq_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr, cos_ptr, sin_ptr, dq_ptr, tiles_ptr, tokens,
    dout_row, q_row, k_row, v_row, out_row, cos_row, sin_row, dq_row, scale, scale2, window,
    heads: tl.constexpr, group: tl.constexpr, pack: tl.constexpr, windowed: tl.constexpr, prefixed: tl.constexpr,
    rotated: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Dq and delta of one tile of queries."""
    start, length, first, head, token, lane, valid = query_tile(tiles_ptr, heads // pack, pack, rows)
    col = tl.arange(0, width)[None, :]
    near, base, shift = token - first, start + first, head * width
    q = tl.load(q_ptr + base * q_row + shift + (near * q_row + lane * width)[:, None] + col)
    dout = tl.load(dout_ptr + base * dout_row + shift + (near * dout_row + lane * width)[:, None] + col)
    out = tl.load(out_ptr + base * out_row + shift + (near * out_row + lane * width)[:, None] + col)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    wide = tl.cast(tokens, tl.int64)
    line = head * wide + base + lane * wide + near
    tl.store(delta_ptr + line, delta, mask=valid)
    lse2 = tl.load(lse_ptr + line) * LOG2E
    k_at = k_ptr + start * k_row + head // group * width
    v_at = v_ptr + start * v_row + head // group * width
    dq = tl.zeros((rows, width), dtype=tl.float32)
    step = tl.arange(0, keys)
    k_wide, v_wide = tl.cast(k_row, tl.int64), tl.cast(v_row, tl.int64)
    begin, edge, whole, end = key_span(first, length, window, rows // pack, keys, windowed)
    lead, ahead = 0, 0
    if prefixed:
        lead_start, lead = prefix_of(tiles_ptr, heads // pack)
        ahead = (lead + keys - 1) // keys * keys
        lead_k, lead_v = (lead_start - start) * k_row, (lead_start - start) * v_row
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
        v = tl.load(v_from + at * v_wide + there[:, None] * v_row + col)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * scale2 - lse2[:, None])
        if masked:
            hidden = unseen(seer[:, None], (at + step)[None, :], window, windowed)
            if prefixed:
                hidden = hidden | ((at + step)[None, :] >= limit)
            p = tl.where(hidden, 0.0, p)
        ds = p * (tl.dot(dout, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    cos_at = cos_ptr + (base * cos_row + near * cos_row)[:, None]
    sin_at = sin_ptr + (base * sin_row + near * sin_row)[:, None]
    offset = (near * dq_row + lane * width)[:, None]
    _store(dq * scale, dq_ptr + base * dq_row + shift, offset, valid[:, None], cos_at, sin_at, rotated, rows, width)


@triton.jit
def _dkdv_span(
    dk, dv, k, v, q_ptr, dout_ptr, lse_ptr, delta_ptr, q_row, dout_row, wide, begin, diagonal, last, end,
    length, lead, key, scale2, window, windowed: tl.constexpr, pack: tl.constexpr, rows: tl.constexpr,
    width: tl.constexpr,
):  # fmt: skip
    """Take the queries [begin, end) of `pack` heads into the gradients of a tile of keys; those of [diagonal, last)
    need no mask. Keys count the queries from `lead` on. Rows without a query of their own have an infinite lse: their
    p is 0."""
    size: tl.constexpr = rows // pack
    row, col = tl.arange(0, rows), tl.arange(0, width)[None, :]
    lane = row % pack
    q_wide, dout_wide = tl.cast(q_row, tl.int64), tl.cast(dout_row, tl.int64)
    for at in tl.range(begin, end, size):
        token = at + row // pack
        valid = (token < length) & (row < size * pack)
        near = tl.minimum(row // pack, length - 1 - at)
        q = tl.load(q_ptr + at * q_wide + (near * q_row + lane * width)[:, None] + col)
        dout = tl.load(dout_ptr + at * dout_wide + (near * dout_row + lane * width)[:, None] + col)
        line = lane * wide + token
        lse2 = tl.load(lse_ptr + line, mask=valid, other=float("inf")) * LOG2E
        delta = tl.load(delta_ptr + line, mask=valid, other=0.0)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale2 - lse2[None, :])
        if (at < diagonal) | (at >= last):
            p = tl.where(unseen(token[None, :] + lead, key[:, None], window, windowed), 0.0, p)
        dv = tl.dot(p.to(dout.dtype), dout, dv)
        ds = p * (tl.dot(v, tl.trans(dout)) - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    return dk, dv


@triton.jit(do_not_specialize=["tokens", "window"])
def dkdv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, cos_ptr, sin_ptr, dk_ptr, dv_ptr, tiles_ptr, tokens,
    dout_row, q_row, k_row, v_row, cos_row, sin_row, dk_row, scale, scale2, window,
    groups: tl.constexpr, group: tl.constexpr, pack: tl.constexpr, windowed: tl.constexpr, prefixed: tl.constexpr,
    rotated: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Dk and dv of one tile of keys, summed over the query heads that share them."""
    size: tl.constexpr = rows // pack
    start, length, first, kv, key, _, valid = query_tile(tiles_ptr, groups, 1, keys)
    col = tl.arange(0, width)[None, :]
    near, base, shift = key - first, start + first, kv * width
    k = tl.load(k_ptr + base * k_row + shift + near[:, None] * k_row + col)
    v = tl.load(v_ptr + base * v_row + shift + near[:, None] * v_row + col)
    dk = tl.zeros((keys, width), dtype=tl.float32)
    dv = tl.zeros((keys, width), dtype=tl.float32)
    wide = tl.cast(tokens, tl.int64)
    end, last = length, length
    diagonal = first + (keys + size - 1) // size * size
    if windowed:
        end = tl.minimum(length, tl.minimum(first + keys, length) - 1 + window)
        last = first + window // size * size
    for part in tl.range(0, group // pack):
        head = kv * group + part * pack
        q_at, dout_at = q_ptr + start * q_row + head * width, dout_ptr + start * dout_row + head * width
        line = head * wide + start
        dk, dv = _dkdv_span(dk, dv, k, v, q_at, dout_at, lse_ptr + line, delta_ptr + line, q_row, dout_row, wide,
                            first, diagonal, last, end, length, 0, key, scale2, window, windowed, pack, rows,
                            width)  # fmt: skip
    if prefixed:  # the document behind this one sees its first `lead` keys
        shared, followers = prefix_of(tiles_ptr, groups)
        lead = shared.to(tl.int32)
        if first < lead:
            behind = start + length
            # No query behind comes before a key that it sees; keys that it does not see lie out of its reach.
            reached = tl.where(key < lead, key, 1 << 30)
            end = followers
            if windowed:
                end = tl.maximum(tl.minimum(followers, tl.minimum(first + keys, lead) - 1 + window - lead), 0)
            safe = tl.where((first + keys <= lead) & (not windowed), followers, 0)
            for part in tl.range(0, group // pack):
                head = kv * group + part * pack
                q_at, dout_at = q_ptr + behind * q_row + head * width, dout_ptr + behind * dout_row + head * width
                line = head * wide + behind
                dk, dv = _dkdv_span(dk, dv, k, v, q_at, dout_at, lse_ptr + line, delta_ptr + line, q_row, dout_row,
                                    wide, 0, 0, safe, end, followers, lead, reached, scale2, window, windowed, pack,
                                    rows, width)  # fmt: skip
    cos_at = cos_ptr + (base * cos_row + near * cos_row)[:, None]
    sin_at = sin_ptr + (base * sin_row + near * sin_row)[:, None]
    offset, mask = near[:, None] * dk_row, valid[:, None]
    _store(dk * scale, dk_ptr + base * dk_row + shift, offset, mask, cos_at, sin_at, rotated, keys, width)
    _store(dv, dv_ptr + base * dk_row + shift, offset, mask, cos_at, sin_at, False, keys, width)
