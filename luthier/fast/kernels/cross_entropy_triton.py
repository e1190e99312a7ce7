"""Cross entropy on CUDA: a program a row, read twice and written once. See `cross_entropy.py` for what is computed.

Each lane keeps the maximum m of what it has seen and l = sum exp(z - m), with one exponential a logit:
e = exp(-|z - m|), then l = l + e, or l = l e + 1 where z is the new maximum. Lanes meet after the last column.
A target is the first arg max if no earlier logit reaches it and no later one exceeds it: no index is searched.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["cross_entropy_", "target_losses"]

# Columns at once and warps for them: 8 columns, 16 bytes, a thread keep its state in 64 registers (sm_90).
BLOCK, WARPS = 4096, 16
# Below any logit of a trained or untrained model and finite, so that no inf - inf arises. A logit of -inf is fine.
_LOWEST = tl.constexpr(-1e30)


@triton.jit
def _logits(raw, scale, cap, has_scale: tl.constexpr, has_cap: tl.constexpr):
    """(z, dz/draw). e = exp(-2 |u|) gives |tanh u| = (1 - e) / (1 + e), its slope 4 e / (1 + e)^2 to all digits."""
    z = raw.to(tl.float32)
    slope = 1.0
    if has_scale:
        z = z * scale
        slope = scale
    if has_cap:
        e = tl.exp(-2.0 * tl.abs(z / cap))
        slope = slope * 4.0 * e / ((1.0 + e) * (1.0 + e))
        capped = cap * (1.0 - e) / (1.0 + e)
        z = tl.where(z < 0.0, -capped, capped)
    return z, slope


@triton.jit
def _seen(
    raw_ptr, col, vocab, target, chosen, top, total, summed, beaten, scale, cap,
    has_scale: tl.constexpr, has_cap: tl.constexpr, smooth: tl.constexpr, whole: tl.constexpr,
):  # fmt: skip
    """Lanes after one block of columns; `whole` blocks need no mask, whatever the vocabulary is a multiple of."""
    if whole:
        z, _ = _logits(tl.load(raw_ptr + col), scale, cap, has_scale, has_cap)
        if smooth:
            summed += z
    else:
        inside = col < vocab
        z, _ = _logits(tl.load(raw_ptr + col, mask=inside, other=0.0), scale, cap, has_scale, has_cap)
        if smooth:
            summed += tl.where(inside, z, 0.0)
        z = tl.where(inside, z, float("-inf"))
    e = tl.exp(-tl.abs(z - top))
    total = tl.where(z > top, total * e + 1.0, total + e)
    top = tl.maximum(top, z)
    beaten |= ((z > chosen) | ((z == chosen) & (col < target))).to(tl.int32)
    return top, total, summed, beaten


@triton.jit
def _gradient(
    raw, col, target, lse, weight, smoothing, vocab, scale, cap, has_scale: tl.constexpr, has_cap: tl.constexpr
):
    z, slope = _logits(raw, scale, cap, has_scale, has_cap)
    grad = tl.exp(z - lse) - tl.where(col == target, 1.0 - smoothing, 0.0) - smoothing / vocab
    return (grad * (weight * slope)).to(raw.dtype)


@triton.jit
def _rows(
    raw_ptr, ids_ptr, weights_ptr, loss_ptr, correct_ptr, vocab, stride, smoothing, scale, cap,
    has_scale: tl.constexpr, has_cap: tl.constexpr, smooth: tl.constexpr, gradient: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    raw_ptr += row * stride
    target = tl.load(ids_ptr + row).to(tl.int32)
    weight = tl.load(weights_ptr + row).to(tl.float32)
    chosen, _ = _logits(tl.load(raw_ptr + target), scale, cap, has_scale, has_cap)
    lane = tl.arange(0, block)
    top = tl.full((block,), _LOWEST, dtype=tl.float32)
    total = tl.zeros((block,), dtype=tl.float32)
    summed = tl.zeros((block,), dtype=tl.float32)
    beaten = tl.zeros((block,), dtype=tl.int32)
    blocks = vocab // block
    for index in range(0, blocks):
        top, total, summed, beaten = _seen(
            raw_ptr, index * block + lane, vocab, target, chosen, top, total, summed, beaten, scale, cap,
            has_scale, has_cap, smooth, True,
        )  # fmt: skip
    last = blocks * block + lane
    top, total, summed, beaten = _seen(
        raw_ptr, last, vocab, target, chosen, top, total, summed, beaten, scale, cap, has_scale, has_cap, smooth, False
    )
    highest = tl.max(top, axis=0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0))
    loss = (1.0 - smoothing) * (lse - chosen)
    if smooth:
        loss += smoothing * (lse - tl.sum(summed, axis=0) / vocab)
    tl.store(loss_ptr + row, loss * weight)
    tl.store(correct_ptr + row, (tl.max(beaten, axis=0) == 0).to(tl.int64))
    if gradient:
        # Backwards: the end of the row is what the caches still hold.
        raw = tl.load(raw_ptr + last, mask=last < vocab, other=0.0)
        grad = _gradient(raw, last, target, lse, weight, smoothing, vocab, scale, cap, has_scale, has_cap)
        tl.store(raw_ptr + last, grad, mask=last < vocab)
        for index in range(0, blocks):
            col = (blocks - 1 - index) * block + lane
            raw = tl.load(raw_ptr + col)
            grad = _gradient(raw, col, target, lse, weight, smoothing, vocab, scale, cap, has_scale, has_cap)
            tl.store(raw_ptr + col, grad)


def cross_entropy_(
    raw_sv: Tensor, ids_s: Tensor, weights_s: Tensor, label_smoothing: float, scale: float, softcap: float | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `cross_entropy.cross_entropy_`."""
    loss_s, correct_s = _run(raw_sv, ids_s, weights_s, label_smoothing, scale, softcap, with_gradient)
    return loss_s.sum(), correct_s.sum()


def target_losses(raw_sv: Tensor, ids_s: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """As `cross_entropy.target_losses`."""
    ones = torch.ones(raw_sv.shape[0], dtype=torch.float32, device=raw_sv.device)
    loss_s, correct_s = _run(raw_sv, ids_s, ones, 0.0, scale, softcap, False)
    return loss_s, correct_s > 0


def _run(
    raw_sv: Tensor, ids_s: Tensor, weights_s: Tensor, label_smoothing: float, scale: float, softcap: float | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(weighted loss fp32 (S,), 1 where the target is the arg max int64 (S,))."""
    rows, vocab = raw_sv.shape
    loss_s = torch.empty(rows, dtype=torch.float32, device=raw_sv.device)
    correct_s = torch.empty(rows, dtype=torch.int64, device=raw_sv.device)
    if rows:
        block = min(BLOCK, max(32, triton.next_power_of_2(vocab)))
        _rows[(rows,)](
            raw_sv, ids_s.contiguous(), weights_s.contiguous(), loss_s, correct_s, vocab, raw_sv.stride(0),
            float(label_smoothing), float(scale), float(softcap or 1.0),
            scale != 1.0, softcap is not None, label_smoothing != 0.0, with_gradient,
            block, num_warps=max(1, block * WARPS // BLOCK),
        )  # fmt: skip
    return loss_s, correct_s
