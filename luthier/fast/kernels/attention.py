"""Causal attention over documents laid end to end, and its gradient with the rotary embedding undone.

With s = scale q k^T over the keys a query sees (those of its document up to itself, at most `window` of them; where
the schedule says that the document goes on from a prefix, as if that stood in front of it):

    p = softmax(s)        out = p v        lse = log sum exp(s)
    delta = sum(dout out)        ds = p (dout v^T - delta)
    dq = scale ds k        dk = scale ds^T q        dv = p^T dout

dk and dv are summed over the query heads that share a key/value head. The Triton kernels round p and ds to the
inputs' dtype for their products (as FlashAttention does) and keep everything else in fp32; no atomics, so equal inputs
give equal bits.

Legend: T tokens, H query heads, G key/value heads (H a multiple of G), K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from luthier.fast.kernels.attention_schedule import Schedule, supports
from luthier.fast.kernels.choice import math_dtype, uses_triton
from luthier.fast.kernels.rope import rope_reference

__all__ = [
    "Schedule",
    "packed_attention",
    "packed_attention_backward",
    "packed_attention_backward_reference",
    "packed_attention_reference",
    "supports",
]

Pair = tuple[Tensor, Tensor]


def packed_attention(
    q_thk: Tensor, k_tgk: Tensor, v_tgk: Tensor, schedule: Schedule, *, scale: float, window: int | None = None,
    out_thk: Tensor | None = None,
) -> Pair:  # fmt: skip
    """Causal attention within each document.

    Args:
        q_thk: (T, H, K); heads of a token lie next to each other, any stride from token to token.
        k_tgk: (T, G, K), as `v_tgk`.
        schedule: of the documents' lengths, which sum to T.
        scale: Of the scores.
        window: Visible keys, the query's own included; None: all of the document so far.
        out_thk: Where to write, with strides as the inputs'.

    Returns:
        out (T, H, K) in the dtype of q and lse (H, T), natural logarithm, fp32.
    """
    if uses_triton(q_thk):
        assert supports(q_thk.shape[2], q_thk.dtype), "the caller asks `supports` first"
        from luthier.fast.kernels import attention_triton

        return attention_triton.forward(q_thk, k_tgk, v_tgk, schedule, scale, window, out_thk)
    return packed_attention_reference(q_thk, k_tgk, v_tgk, schedule, scale=scale, window=window, out_thk=out_thk)


def packed_attention_backward(
    dout_thk: Tensor, q_thk: Tensor, k_tgk: Tensor, v_tgk: Tensor, out_thk: Tensor, lse_ht: Tensor, schedule: Schedule,
    *, scale: float, window: int | None = None, cos_sin: Pair | None = None, dqkv_out: Tensor,
) -> None:  # fmt: skip
    """Write [dq | dk | dv] into `dqkv_out` (T, (H + 2 G) K), a view with any row stride.

    Args:
        dout_thk: (T, H, K), gradient of `out_thk`.
        out_thk: What `packed_attention` returned, as `lse_ht`.
        cos_sin: (T, K) each: dq and dk are rotated back with them as they are written (`kernels.rope`, inverse).
            None: they are written as they are, for a caller whose rotation covers part of the head.
    """
    assert cos_sin is None or cos_sin[0].shape[1] == q_thk.shape[2], "the fused rotation covers whole heads"
    if uses_triton(q_thk):
        assert supports(q_thk.shape[2], q_thk.dtype), "the caller asks `supports` first"
        from luthier.fast.kernels import attention_triton

        attention_triton.backward(
            dout_thk, q_thk, k_tgk, v_tgk, out_thk, lse_ht, schedule, scale, window, cos_sin, dqkv_out
        )
        return
    packed_attention_backward_reference(
        dout_thk, q_thk, k_tgk, v_tgk, out_thk, lse_ht, schedule, scale=scale, window=window, cos_sin=cos_sin,
        dqkv_out=dqkv_out,
    )  # fmt: skip


def packed_attention_reference(
    q_thk: Tensor, k_tgk: Tensor, v_tgk: Tensor, schedule: Schedule, *, scale: float, window: int | None = None,
    out_thk: Tensor | None = None,
) -> Pair:  # fmt: skip
    """Definition of `packed_attention`. lse is fp64 where the inputs are."""
    dtype = math_dtype(q_thk)
    out = torch.empty(q_thk.shape, dtype=q_thk.dtype, device=q_thk.device) if out_thk is None else out_thk
    lse = torch.empty((q_thk.shape[1], q_thk.shape[0]), dtype=dtype, device=q_thk.device)
    for rows, seen in _documents(schedule, q_thk.device):
        scores, value = _scores(q_thk[rows], k_tgk[seen], scale, window), _spread(v_tgk[seen], q_thk)
        lse[:, rows] = scores.logsumexp(dim=-1)
        out[rows] = (scores.softmax(dim=-1) @ value).transpose(0, 1).to(out.dtype)
    return out, lse


def packed_attention_backward_reference(
    dout_thk: Tensor, q_thk: Tensor, k_tgk: Tensor, v_tgk: Tensor, out_thk: Tensor, lse_ht: Tensor, schedule: Schedule,
    *, scale: float, window: int | None = None, cos_sin: Pair | None = None, dqkv_out: Tensor,
) -> None:  # fmt: skip
    """Definition of `packed_attention_backward`."""
    heads, groups = q_thk.shape[1], k_tgk.shape[1]
    dtype = math_dtype(q_thk)
    dq_out, dk_out, dv_out = dqkv_out.unflatten(1, (heads + 2 * groups, -1)).split((heads, groups, groups), dim=1)
    wide = [torch.zeros(each.shape, dtype=dtype, device=q_thk.device) for each in (dq_out, dk_out, dv_out)]
    for rows, seen in _documents(schedule, q_thk.device):
        dout = dout_thk[rows].to(dtype).transpose(0, 1)
        query = q_thk[rows].to(dtype).transpose(0, 1)
        p = (_scores(q_thk[rows], k_tgk[seen], scale, window) - lse_ht[:, rows, None]).exp()
        delta = (dout * out_thk[rows].to(dtype).transpose(0, 1)).sum(dim=-1, keepdim=True)
        ds = p * (dout @ _spread(v_tgk[seen], q_thk).transpose(1, 2) - delta)
        dq = scale * (ds @ _spread(k_tgk[seen], q_thk))
        dk = scale * (ds.transpose(1, 2) @ query).unflatten(0, (groups, -1)).sum(dim=1)
        dv = (p.transpose(1, 2) @ dout).unflatten(0, (groups, -1)).sum(dim=1)
        for place, grad, where in zip(wide, (dq, dk, dv), (rows, seen, seen), strict=True):
            place[where] += grad.transpose(0, 1)
    if cos_sin is not None:
        wide[:2] = [rope_reference(grad, *cos_sin, inverse=True) for grad in wide[:2]]
    for place, grad in zip((dq_out, dk_out, dv_out), wide, strict=True):
        place.copy_(grad)


def _documents(schedule: Schedule, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Rows of each document, and those of the keys it sees."""
    start = 0
    for length, (lead, tokens) in zip(schedule.lengths, schedule.prefixes or repeat((0, 0)), strict=False):
        rows = range(start, start + length)
        yield slice(start, rows.stop), torch.tensor([*range(lead, lead + tokens), *rows], device=device)
        start += length


def _spread(x_tgk: Tensor, q_thk: Tensor) -> Tensor:
    """(H, T, K) in the dtype that is computed in: key or value heads repeated for each of their query heads."""
    return x_tgk.to(math_dtype(q_thk)).transpose(0, 1).repeat_interleave(q_thk.shape[1] // x_tgk.shape[1], dim=0)


def _scores(q_thk: Tensor, k_tgk: Tensor, scale: float, window: int | None) -> Tensor:
    """(H, queries, keys); minus infinity where a query does not see a key. The last query stands at the last key."""
    scores = scale * (q_thk.to(math_dtype(q_thk)).transpose(0, 1) @ _spread(k_tgk, q_thk).transpose(1, 2))
    column = torch.arange(k_tgk.shape[0], device=q_thk.device)
    distance = column[-q_thk.shape[0] :, None] - column[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return scores.masked_fill(~seen, float("-inf"))
