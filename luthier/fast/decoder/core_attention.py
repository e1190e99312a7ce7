"""Attention over packed documents with its gradient as a call of its own, for the layer function.

    packed      CUDA, 16-bit types, the usual head widths: the engine's own kernels (`kernels/attention.py`), made
                for many short documents; they rotate the gradient back as they write it
    varlen      CUDA, 16-bit types, other widths: the kernels behind `torch.nn.attention.varlen`, called through
                aten: they take grouped heads in every torch from 2.11 on and give the gradient as a plain function
    documents   elsewhere: scaled-dot-product document by document; autograd of that part is kept as it is

Legend: T tokens, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from luthier.fast.attention import Documents, has_varlen_kernel
from luthier.fast.kernels import backend
from luthier.fast.kernels.attention import packed_attention, packed_attention_backward, supports
from luthier.fast.kernels.rope import rope, rope_qkv_backward

__all__ = ["Path", "attend", "attend_backward", "path_for"]

Triple = tuple[Tensor, Tensor, Tensor]
Path = Literal["packed", "varlen", "documents"]


def path_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Path:
    """What computes attention for heads of this width."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "documents"
    if supports(head_dim, dtype) and backend(device)[0] == "triton":
        return "packed"
    return "varlen" if has_varlen_kernel() else "documents"


def attend(
    query_thk: Tensor,
    key_tgk: Tensor,
    value_tgk: Tensor,
    documents: Documents,
    *,
    path: Path,
    scale: float,
    window: int | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Causal attention within each document.

    Args:
        window: Visible keys, the query's own included; None: all of the document.

    Returns:
        (T, H, K) and what `attend_backward` needs besides its inputs.
    """
    if path == "packed":
        out, lse = packed_attention(query_thk, key_tgk, value_tgk, documents.schedule, scale=scale, window=window)
        return out, (lse,)
    if path == "varlen":
        left = None if window is None else window - 1
        rows, ends = documents.seen
        if rows is not None:
            key_tgk, value_tgk = key_tgk.index_select(0, rows), value_tgk.index_select(0, rows)
        out, lse, rng, unused, _ = torch.ops.aten._flash_attention_forward(
            query_thk, key_tgk, value_tgk, documents.cu_seqlens, ends, max(documents.lengths), documents.longest,
            0.0, window is None, False,
            scale=scale, window_size_left=left, window_size_right=None if window is None else 0,
        )  # fmt: skip
        return out, (lse, rng, unused)
    leaves = [tensor.detach().requires_grad_() for tensor in (query_thk, key_tgk, value_tgk)]
    with torch.enable_grad():
        query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
        out = documents.attend(query, key, value, scale=scale, window=window)[0]
    return out.detach(), (out, *leaves)


def attend_backward(
    grad_thk: Tensor, qkv: Triple, out_thk: Tensor, kept: Sequence[Tensor], documents: Documents, *,
    path: Path, scale: float, window: int | None, cos_sin: tuple[Tensor, Tensor] | None, into: Tensor,
) -> None:  # fmt: skip
    """Write the gradient of query, key and value into `into` (T, (H + 2 G) K), the first two rotated back with
    `cos_sin`; as they are with None."""
    query, key, value = qkv
    if path == "packed":
        whole = cos_sin is not None and cos_sin[0].shape[1] == query.shape[2]
        packed_attention_backward(
            grad_thk, query, key, value, out_thk, kept[0], documents.schedule, scale=scale, window=window,
            cos_sin=cos_sin if whole else None, dqkv_out=into,
        )  # fmt: skip
        if cos_sin is not None and not whole:
            turned = into[:, : (query.shape[1] + key.shape[1]) * query.shape[2]].unflatten(1, (-1, query.shape[2]))
            rope(turned, *cos_sin, inverse=True, out_mhk=turned)
        return
    if path == "varlen":
        left = None if window is None else window - 1
        rows, ends = documents.seen
        seen = (key, value) if rows is None else (key.index_select(0, rows), value.index_select(0, rows))
        lse, rng, unused = kept
        found: Triple = torch.ops.aten._flash_attention_backward(
            grad_thk, query, *seen, out_thk, lse, documents.cu_seqlens, ends, max(documents.lengths),
            documents.longest, 0.0, window is None,
            rng, unused, scale=scale, window_size_left=left, window_size_right=None if window is None else 0,
        )  # fmt: skip
        if rows is not None:  # two documents at most see a key: the order of the sum does not matter
            d_query, *d_seen = found
            d_key, d_value = (torch.zeros_like(key).index_add_(0, rows, grad) for grad in d_seen)
            found = (d_query, d_key, d_value)
    else:
        out, *leaves = kept
        d_query, d_key, d_value = torch.autograd.grad(out, leaves, grad_thk, retain_graph=True)
        found = (d_query, d_key, d_value)
    if cos_sin is not None:
        rope_qkv_backward(*found, *cos_sin, into)
        return
    for place, grad in zip(into.split([part[0].numel() for part in found], dim=1), found, strict=True):
        place.copy_(grad.flatten(1))
