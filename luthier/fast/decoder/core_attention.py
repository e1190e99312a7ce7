"""Attention over packed documents with its gradient as a call of its own, for the layer function.

    CUDA, 16-bit types   the kernels behind `torch.nn.attention.varlen`, called through aten: they take grouped
                         heads in every torch from 2.11 on and give the gradient as a plain function
    elsewhere            scaled-dot-product document by document; autograd of that part is kept as it is

Legend: T tokens, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.fast.attention import Documents, has_varlen_kernel
from luthier.fast.kernels.rope import rope_qkv_backward
from luthier.fast.split import sdpa_documents

__all__ = ["attend", "attend_backward", "uses_kernel"]

Triple = tuple[Tensor, Tensor, Tensor]


def uses_kernel(query: Tensor) -> bool:
    """Whether the CUDA kernels compute this."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and has_varlen_kernel()


def attend(
    query_thk: Tensor, key_tgk: Tensor, value_tgk: Tensor, documents: Documents, *, scale: float, window: int | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Causal attention within each document.

    Args:
        window: Visible keys, the query's own included; None: all of the document.

    Returns:
        (T, H, K) and what `attend_backward` needs besides its inputs.
    """
    if uses_kernel(query_thk):
        left = None if window is None else window - 1
        bounds, longest = documents.cu_seqlens, documents.longest
        out, lse, rng, unused, _ = torch.ops.aten._flash_attention_forward(
            query_thk, key_tgk, value_tgk, bounds, bounds, longest, longest, 0.0, window is None, False,
            scale=scale, window_size_left=left, window_size_right=None if window is None else 0,
        )  # fmt: skip
        return out, (lse, rng, unused)
    leaves = [tensor.detach().requires_grad_() for tensor in (query_thk, key_tgk, value_tgk)]
    with torch.enable_grad():
        query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
        out = sdpa_documents(query, key, value, documents.groups, scale=scale, window=window)[0]
    return out.detach(), (out, *leaves)


def attend_backward(
    grad_thk: Tensor, qkv: Triple, out_thk: Tensor, kept: Sequence[Tensor], documents: Documents, *,
    scale: float, window: int | None, cos: Tensor, sin: Tensor, into: Tensor,
) -> None:  # fmt: skip
    """Write the gradient of query, key and value, the first two rotated back, into `into` (T, (H + 2 G) K)."""
    query, key, value = qkv
    if uses_kernel(query):
        left = None if window is None else window - 1
        bounds, longest = documents.cu_seqlens, documents.longest
        lse, rng, unused = kept
        found: Triple = torch.ops.aten._flash_attention_backward(
            grad_thk, query, key, value, out_thk, lse, bounds, bounds, longest, longest, 0.0, window is None,
            rng, unused, scale=scale, window_size_left=left, window_size_right=None if window is None else 0,
        )  # fmt: skip
    else:
        out, *leaves = kept
        d_query, d_key, d_value = torch.autograd.grad(out, leaves, grad_thk, retain_graph=True)
        found = (d_query, d_key, d_value)
    rope_qkv_backward(*found, cos, sin, into)
