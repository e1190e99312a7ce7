"""The cache of keys and values during generation, for models whose every layer looks at all tokens.

transformers' own `DynamicCache` copies everything it holds with every token (a third of the time of
a step on a CPU). Here a layer's tensors have room at the end and a step writes in place. Such
caches can also be cut apart and joined, so that

- what all prompts begin with is computed once (`Prefix`), and
- prompts are read in small groups of about one length, without computing padding, and then
  answered together (`joined`).

Other caches (sliding windows, recurrent states) are left to transformers: `new_cache` says which it is.

Legend: B rows, H key/value heads, L columns, D head size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["Group", "Prefix", "RoomyLayer", "joined", "loses_rows", "new_cache"]

# Columns of room behind the last token: everything is copied once per so many tokens.
ROOM_COLUMNS = 64


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, views of larger buffers."""

    keys: Tensor
    values: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffers: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, new, D) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def _append(self, which: int, held: Tensor, new: Tensor) -> Tensor:
        old = held.shape[-2] if held.numel() else 0
        total = old + new.shape[-2]
        buffer = self._buffers[which]
        # Rows that left (`batch_select_indices`) or a deep copy leave `held` outside the buffer.
        if buffer is None or buffer.shape[-2] < total or held.data_ptr() != buffer.data_ptr():
            buffer = new.new_empty(*new.shape[:-2], total + ROOM_COLUMNS, new.shape[-1])
            if old:
                buffer[..., :old, :] = held
            self._buffers[which] = buffer
        buffer[..., old:total, :] = new
        return buffer[..., :total, :]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that all prompts begin with, and their cache (one row)."""

    ids: tuple[int, ...]
    cache: Any

    def expanded(self, rows: int) -> Any:
        """A cache of its own for some rows."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that were read together: their cache, and how many columns each of them has."""

    cache: Any
    columns: int


def new_cache(inner: Any) -> tuple[Any, bool]:
    """An empty cache for a model, and whether it is of the kind this module can cut and join.

    The cache is None for models that keep their state in some other way (Mamba).
    """
    if "past_key_values" not in inspect.signature(inner.forward).parameters:
        return None, False
    cache = DynamicCache(config=inner.config)
    simple = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if simple:
        cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache, simple


def loses_rows(cache: Any) -> bool:
    """Whether finished rows can leave a cache: not where a layer also keeps a recurrent state, which stays as it is."""
    kinds = (DynamicLayer, RoomyLayer, DynamicSlidingWindowLayer)
    return cache is not None and all(type(layer) in kinds for layer in cache.layers)


def joined(groups: Sequence[Group], inner: Any, *, shared: int, width: int) -> Any:
    """One cache of `width` columns for the rows of all groups.

    The first `shared` columns of a group stay on the left, the others move to the right; the columns
    between are padding, whose keys and values are 0 and masked.
    """
    cache, _ = new_cache(inner)
    for index, layer in enumerate(cache.layers):
        keys = [_spread(group.cache.layers[index].keys, group.columns, shared, width) for group in groups]
        values = [_spread(group.cache.layers[index].values, group.columns, shared, width) for group in groups]
        layer.update(torch.cat(keys), torch.cat(values))
    return cache


def _spread(tensor: Tensor, columns: int, shared: int, width: int) -> Tensor:
    """(B, H, columns, D) -> (B, H, width, D)."""
    if columns == width:
        return tensor
    gap = tensor.new_zeros(*tensor.shape[:-2], width - columns, tensor.shape[-1])
    return torch.cat([tensor[..., :shared, :], gap, tensor[..., shared:columns, :]], dim=-2)
