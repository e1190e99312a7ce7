"""Attention of new tokens over pages, and writing their keys and values: definitions and the choice of kernel.

A forward brings N new tokens of R rows. Row r has `new[r]` of them at queries `starts[r]` ... and, with them,
`lengths[r]` tokens in the cache; its page number i is `tables[slots[r], i]`. Query j of row r stands at position
lengths[r] - new[r] + j and sees the positions up to its own (with a window of w: the last w of them).

    o = softmax(cap(scale q K^T)) V        cap(x) = x, or softcap tanh(x / softcap)

Legend: N tokens, R rows, Q query heads, H key/value heads, D head size, S slots, W pages a slot can have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton
from luthier.generation.paged.pool import PAGE_TOKENS

__all__ = ["Look", "attend", "attend_reference", "write", "write_reference"]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What the rows of one forward see."""

    slots: Tensor
    """(R,) int64."""
    tables: Tensor
    """(S, W) int32."""
    lengths: Tensor
    """(R,) int32, the new tokens included."""
    starts: Tensor
    """(R + 1,) int32."""
    longest: int
    """Most new tokens of a row."""


def write(keys: Tensor, values: Tensor, at: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> None:
    """Put new (N, H, D) keys and values to the (N,) int64 places of (P x page, H, D) `keys` and `values`."""
    if uses_triton(keys):
        from luthier.generation.paged import kernels_triton

        kernels_triton.write(keys, values, at, k_nhd, v_nhd)
    else:
        write_reference(keys, values, at, k_nhd, v_nhd)


def write_reference(keys: Tensor, values: Tensor, at: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> None:
    """Definition of `write`."""
    keys[at] = k_nhd
    values[at] = v_nhd


def attend(
    q_nqd: Tensor, keys: Tensor, values: Tensor, look: Look, *, scale: float, window: int | None = None,
    softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """(N, Q, D) outputs in the dtype of q, sums in float32. Rows of length 0 give zeros."""
    if uses_triton(q_nqd):
        from luthier.generation.paged import kernels_triton

        return kernels_triton.attend(q_nqd, keys, values, look, scale=scale, window=window, softcap=softcap)
    return attend_reference(q_nqd, keys, values, look, scale=scale, window=window, softcap=softcap)


def attend_reference(
    q_nqd: Tensor, keys: Tensor, values: Tensor, look: Look, *, scale: float, window: int | None = None,
    softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """Definition of `attend`, row by row."""
    out = torch.zeros_like(q_nqd)
    starts = look.starts.tolist()
    groups = q_nqd.shape[1] // keys.shape[1]
    for row, (slot, length) in enumerate(zip(look.slots.tolist(), look.lengths.tolist(), strict=True)):
        first, last = starts[row], starts[row + 1]
        if first == last or not length:
            continue
        column = torch.arange(length, device=q_nqd.device)
        at = look.tables[slot, column // PAGE_TOKENS].long() * PAGE_TOKENS + column % PAGE_TOKENS
        k = keys[at].float().repeat_interleave(groups, dim=1)
        v = values[at].float().repeat_interleave(groups, dim=1)
        score = torch.einsum("nqd,lqd->qnl", q_nqd[first:last].float(), k) * scale
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        position = torch.arange(length - (last - first), length, device=q_nqd.device)[:, None]
        seen = column <= position
        if window is not None:
            seen &= column > position - window
        weight = score.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        out[first:last] = torch.einsum("qnl,lqd->nqd", weight, v).to(out.dtype)
    return out
