"""Heads for positions: how processes that share a sequence attend over all of it (DeepSpeed-Ulysses, arXiv:2309.14509).

Outside attention each of S processes has T/S of the tokens and all heads. For attention they exchange, so that each has
all T tokens and 1/S of the heads, and afterwards exchange back; the backward pass does the same with gradients:

    forward     q|k|v  (T/S, H + 2 G) -> (T, h + 2 g)          a   (T, h) -> (T/S, H)
    backward    da     (T/S, H) -> (T, h)                      dq|dk|dv  (T, h + 2 g) -> (T/S, H + 2 G)

q, k and v travel as one tensor. Process i has the tokens from i T/S on, so what arrives lies in the order of the
sequence and what leaves is in order already: one copy an exchange, not two. Where there are fewer key/value heads than
processes, each goes to several of them, and their gradients are added (in fp32).

torch moves the tensors (`all_to_all_single`). Legend: T tokens of the sequence, H query heads, G key/value heads, K
head width; h and g: heads of a process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.model.head_split import HeadSplit

__all__ = ["SequenceGroup", "split_heads"]

Triple = tuple[Tensor, Tensor, Tensor]


class SequenceGroup:
    """The processes that share each sequence, as one of them."""

    def __init__(self, group: Any, *, index: int, size: int) -> None:
        """`group`: torch's process group; its process `index` has part `index` of each sequence."""
        self._group, self.index, self.size = group, index, size

    def heads_out(self, heads: Triple, split: HeadSplit) -> Tensor:
        """(T, h + 2 g, K): this process' q, k and v heads of all tokens, from all heads of its own tokens."""
        query, key, value = heads
        tokens, _, width = query.shape
        h, g = split.local_heads, split.local_key_value_heads
        leaving = query.new_empty(self.size, tokens, h + 2 * g, width)
        leaving[:, :, :h].copy_(query.unflatten(1, (self.size, h)).transpose(0, 1))
        for place, part in ((h, key), (h + g, value)):
            wide = part[:, :, None].expand(-1, -1, split.copies, -1).flatten(1, 2) if split.copies > 1 else part
            leaving[:, :, place : place + g].copy_(wide.unflatten(1, (self.size, g)).transpose(0, 1))
        return self._exchange(leaving).flatten(0, 1)

    def heads_back(self, grad_tnk: Tensor, split: HeadSplit, out_md: Tensor) -> None:
        """Write the gradients of all heads of this process' tokens into `out_md` (T/S, (H + 2 G) K), from those of
        this process' heads of all tokens: `heads_out` backwards."""
        arrived = self._exchange(grad_tnk.unflatten(0, (self.size, -1)))
        h, g, n_kv = split.local_heads, split.local_key_value_heads, split.key_value_heads
        out = out_md.unflatten(1, (split.heads + 2 * n_kv, -1))
        out[:, : split.heads].unflatten(1, (self.size, h)).copy_(arrived[:, :, :h].transpose(0, 1))
        for start, place in ((split.heads, h), (split.heads + n_kv, h + g)):
            part, into = arrived[:, :, place : place + g], out[:, start : start + n_kv]
            if split.copies > 1:
                into.copy_(part[:, :, 0].unflatten(0, (n_kv, -1)).sum(dim=1).transpose(0, 1))
            else:
                into.unflatten(1, (self.size, g)).copy_(part.transpose(0, 1))

    def positions_back(self, a_thk: Tensor) -> Tensor:
        """(T/S, H K): all heads of this process' tokens, from this process' heads of all tokens."""
        arrived = self._exchange(a_thk.unflatten(0, (self.size, -1)))
        return arrived.transpose(0, 1).flatten(1)

    def positions_out(self, grad_md: Tensor, split: HeadSplit) -> Tensor:
        """(T, h, K) from (T/S, H K): `positions_back` backwards."""
        parts = grad_md.unflatten(1, (self.size, split.local_heads, -1)).transpose(0, 1)
        return self._exchange(parts).flatten(0, 1)

    def _exchange(self, leaving: Tensor) -> Tensor:
        """Part j of the first axis goes to process j; what comes from process j is part j of the result."""
        leaving = leaving.contiguous()
        arrived = torch.empty_like(leaving)
        torch.distributed.all_to_all_single(arrived, leaving, group=self._group)
        return arrived


def split_heads(stacked_tnk: Tensor, split: HeadSplit) -> Triple:
    """Views of q, k, v in (T, h + 2 g, K)."""
    widths = (split.local_heads, split.local_key_value_heads, split.local_key_value_heads)
    query, key, value = stacked_tnk.split(widths, dim=1)
    return query, key, value
