"""Attention document by document through torch's scaled-dot-product call; the path of CPUs and of fallbacks.

Document bounds are plain ints, so slicing waits for no device. Neighbouring documents of one
length share a call. Legend: T tokens, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Group", "group_by_length", "sdpa_documents", "sdpa_prefixed"]


class Group(NamedTuple):
    """`documents` documents of `length` tokens each, next to each other, the first token at `start`."""

    start: int
    documents: int
    length: int


def group_by_length(lengths: Sequence[int]) -> tuple[Group, ...]:
    """Neighbouring documents of one length, in the order of the sequence."""
    groups = []
    start = 0
    for length, members in groupby(lengths):
        count = len(list(members))
        groups.append(Group(start, count, length))
        start += count * length
    return tuple(groups)


def sdpa_documents(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    *,
    scale: float,
    window: int | None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention within each document.

    Shapes: query (1, H, T, K), key and value (1, G, T, K); returns (1, T, H, K).
    """
    outputs = []
    sizes = [group.documents * group.length for group in groups]
    # `split`, not slices: its gradient is one concatenation, a slice's is a zero-filled copy of the whole tensor.
    parts = zip(groups, *(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for (_, documents, length), *flat in parts:
        q, k, v = (_by_document(part, documents) for part in flat)
        banded = window is not None and window < length
        mask = _band(length, window, q.device) if banded and window is not None else None
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(out.transpose(1, 2).reshape(1, documents * length, out.shape[1], out.shape[3]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def sdpa_prefixed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    prefixes: Sequence[tuple[int, int]],
    *,
    scale: float,
    window: int | None,
    dropout: float = 0.0,
) -> Tensor:
    """As `sdpa_documents`, where a document also sees the prefix it goes on from: (first row, tokens), of the document
    right before it."""
    outputs = []
    before: tuple[Tensor, ...] = ()
    parts = zip(prefixes, *(tensor.split(tuple(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    for (_, shared), q, own_k, own_v in parts:
        k, v = own_k, own_v
        if shared:
            k, v = (torch.cat([lead[:, :, :shared], own], dim=2) for lead, own in zip(before, (k, v), strict=True))
        before = (own_k, own_v)
        banded = window is not None and window < k.shape[2]
        mask = _band(k.shape[2], window, q.device)[shared:] if shared or banded else None
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _by_document(part: Tensor, documents: int) -> Tensor:
    """(1, H, documents x length, K) -> (documents, H, length, K)."""
    return part if documents == 1 else part[0].unflatten(1, (documents, -1)).transpose(0, 1)


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    row = torch.arange(length, device=device)
    distance = row[:, None] - row[None, :]
    return (distance >= 0) & (distance < (length if window is None else window))
