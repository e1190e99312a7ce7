"""Keys and values of rows that come and go: one slot a row, all slots in one tensor a layer.

A row's tokens stand at columns 0, 1, 2, ... of its slot, so positions and columns are the same
number and nothing is ever shifted. `forward` reads new tokens for a range of slots; a mask shows
each token the columns up to its own (and, in layers with a sliding window, not those before it).
Tokens that only pad a short row write to columns behind the row's end. No token sees those before
the row's next tokens overwrite them.

Slots in use are kept without holes: when a row leaves, the last one moves into its place.

Legend: S slots, R rows of one forward, T new tokens, H key/value heads, C columns, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["Slots"]

# The buffers grow by so many slots and columns at a time; growing copies what they hold.
SLOT_STEP, COLUMN_STEP = 4, 128


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (S, H, C, D) each."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (R, H, T, D) keys and values of the rows at hand; returns all columns in view."""
        at, first, last, width = self._slots.at, self._slots.first, self._slots.last, self._slots.view
        if not self.buffers:
            self._begin(key_states[0], value_states[0])
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[first:last].transpose(1, 2)[at] = new.transpose(1, 2)
        keys, values = self.buffers
        return keys[first:last, :, :width], values[first:last, :, :width]

    def fill(self, slot: int, held: tuple[Tensor, Tensor], length: int) -> None:
        """Write (H, >= length, D) keys and values to the beginning of a slot."""
        if not self.buffers:
            self._begin(*held)
        for buffer, old in zip(self.buffers, held, strict=True):
            buffer[slot, :, :length] = old[:, :length]

    def _begin(self, *like: Tensor) -> None:
        """Make the buffers for states of (H, any, D)."""
        self.is_initialized = True
        # Zeros: what a mask hides is still multiplied by 0, and memory found could hold NaN.
        self.buffers = [
            states.new_zeros(self._slots.rows, states.shape[0], self._slots.columns, states.shape[2]) for states in like
        ]

    def resize(self, rows: int, columns: int) -> None:
        """Keep what both sizes hold."""
        for index, old in enumerate(self.buffers):
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
            kept = (slice(min(rows, old.shape[0])), slice(None), slice(min(columns, old.shape[2])))
            new[kept] = old[kept]
            self.buffers[index] = new

    def get_seq_length(self) -> int:
        """Positions are always given, so nothing depends on this."""
        return 0


class Slots:
    """The cache of one model, and the forward pass over it.

    Args:
        model: A causal language model of transformers.

    Raises:
        EnvironmentProblem: the model keeps its state in another way than keys and values.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lengths: list[int] = []
        """Tokens of each slot in use."""
        self.rows, self.columns = 0, 0
        self.at: tuple[Tensor, Tensor]
        self.first, self.last, self.view = 0, 0, 0
        self._windows = _windows(model)
        cache = DynamicCache(config=model.config)
        self._layers = [_SlotLayer(self) for _ in cache.layers]
        cache.layers = self._layers
        self._cache = cache
        self._eager = model.config._attn_implementation == "eager"
        types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []
        self._mixed = len(set(types)) > 1

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(buffer.nbytes for layer in self._layers for buffer in layer.buffers)

    def open(self) -> int:
        """A new empty slot behind the last; its index."""
        self.lengths.append(0)
        return len(self.lengths) - 1

    def close(self, slot: int) -> None:
        """Free a slot; the last one moves into its place."""
        last = len(self.lengths) - 1
        self._copy(last, slot)
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.rows, self.columns = 0, 0
            for layer in self._layers:
                layer.buffers = []

    def copy_out(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a slot's first tokens, (H, length, D) a layer."""
        return [
            (layer.buffers[0][slot, :, :length].clone(), layer.buffers[1][slot, :, :length].clone())
            for layer in self._layers
        ]

    def copy_in(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> int:
        """Begin an empty slot with the first `length` tokens of what `copy_out` gave; how many that were."""
        self._make_room(length)
        for layer, held in zip(self._layers, layers, strict=True):
            layer.fill(slot, held, length)
        self.lengths[slot] = length
        return length

    def kept_length(self, length: int) -> int:
        """How many of so many tokens `copy_out` can keep."""
        return length

    def release(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """What `copy_out` gave is not needed any more."""

    def ready(self) -> AbstractContextManager[None]:
        """To be held while the engine works."""
        return nullcontext()

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots."""
        if one == other:
            return
        length = max(self.lengths[one], self.lengths[other])
        for layer in self._layers:
            for buffer in layer.buffers:
                kept = buffer[one, :, :length].clone()
                buffer[one, :, :length] = buffer[other, :, :length]
                buffer[other, :, :length] = kept
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def _copy(self, source: int, target: int) -> None:
        if source == target:
            return
        length = self.lengths[source]
        for layer in self._layers:
            for buffer in layer.buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def forward(self, first: int, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read new tokens of slots `first`, `first + 1`, ...; rows may have different numbers of them.

        Returns:
            (R, V) logits behind each row's last new token, in float32.
        """
        count, longest = len(tokens), max(map(len, tokens))
        before = self.lengths[first : first + count]
        self.view = max(before) + longest
        self._make_room(self.view)
        self.first, self.last = first, first + count
        device = self.model.device
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens], device=device)
        positions = torch.tensor(before, device=device)[:, None] + torch.arange(longest, device=device)
        self.at = (torch.arange(count, device=device)[:, None], positions)
        ends = torch.tensor([len(row) - 1 for row in tokens], device=device)
        needed, index = ends.unique(return_inverse=True)
        output = self.model(
            input_ids=ids, attention_mask=self._masks(positions), position_ids=positions,
            past_key_values=self._cache, use_cache=True, logits_to_keep=needed,
        )  # fmt: skip
        for row, new in enumerate(tokens):
            self.lengths[first + row] += len(new)
        logits: Tensor = output.logits[torch.arange(count, device=device), index]
        return logits.float()

    def _make_room(self, columns: int) -> None:
        rows = -(-len(self.lengths) // SLOT_STEP) * SLOT_STEP
        columns = -(-columns // COLUMN_STEP) * COLUMN_STEP
        if rows > self.rows or columns > self.columns:
            self.rows, self.columns = max(rows, self.rows), max(columns, self.columns)
            for layer in self._layers:
                layer.resize(self.rows, self.columns)

    def _masks(self, positions: Tensor) -> Any:
        """(R, 1, T, columns in view): True, or 0.0 for eager attention, where a token may look."""
        columns = torch.arange(self.view, device=positions.device)
        full = columns <= positions[..., None]
        made = {}
        for kind, window in self._windows.items():
            seen = full if window is None else full & (columns > positions[..., None] - window)
            mask = seen[:, None]
            if self._eager:
                lowest = torch.finfo(self.model.dtype).min
                mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(~mask, lowest)
            made[kind] = mask
        return made if self._mixed else next(iter(made.values()))


def _windows(model: Any) -> dict[str, int | None]:
    """Kinds of attention layers, and how many tokens each looks back (None: all)."""
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    layers = DynamicCache(config=model.config).layers if "past_key_values" in parameters else []
    kinds: dict[str, int | None] = {}
    for layer in layers:
        if type(layer) is DynamicLayer:
            kinds["full_attention"] = None
        elif type(layer) is DynamicSlidingWindowLayer:
            kinds["sliding_attention"] = int(layer.sliding_window)
        else:
            kinds = {}
            break
    if not kinds or "position_ids" not in parameters:
        raise EnvironmentProblem(
            code="S601", message=f"{name} keeps a state that requests cannot share a batch with (recurrent or chunked)",
            hint="`luthier serve --backend vllm`",
        )  # fmt: skip
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise EnvironmentProblem(
            code="S602", message=f"serving needs sdpa or eager attention, not {model.config._attn_implementation}",
            hint="leave `model.attn_implementation` at auto",
        )  # fmt: skip
    return kinds
