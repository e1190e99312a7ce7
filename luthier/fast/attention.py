"""Causal attention over documents laid end to end: no padding, no mask, no token sees another document.

Registered once under `luthier_varlen` in transformers' attention interface. The model's own forward
carries the document boundaries to each layer as one keyword argument, `luthier_documents`. There is no mask
function of that name (but while `observe` watches), so no T x T mask is ever built. A document may go on from the
first tokens of the one before it (`prefixes`: answers that share a prompt), on every path.

    CUDA        `torch.nn.attention.varlen.varlen_attn` over cu_seqlens
    elsewhere   one scaled-dot-product call per document over slices whose bounds are plain ints;
                documents of one length share a call

What the function does not know (soft-capping, sinks, position bias, a cache, a ready-made mask, any
new keyword argument) it refuses with `UnsupportedAttention`: `fast/probe.py` meets the refusal when
the engine is attached and gives such a model the padded layout. Nothing is silently ignored.

Legend: T tokens, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.fast.exchange import SequenceGroup
from luthier.fast.kernels.attention_schedule import Schedule, longest_seen
from luthier.fast.split import Group, group_by_length, sdpa_documents, sdpa_prefixed

__all__ = [
    "NAME",
    "Documents",
    "Observed",
    "UnsupportedAttention",
    "has_varlen_kernel",
    "note_window",
    "observe",
    "register",
    "varlen_attention",
]

NAME = "luthier_varlen"

# Keyword arguments that models pass to attention functions and that do not change the result here.
_HARMLESS = {
    "position_ids",
    "use_cache",
    "cache_position",
    "return_dict",
    "output_hidden_states",
    "output_router_logits",
}


class UnsupportedAttention(Exception):
    """This model asks for attention that the packed layout does not compute; the reason is the message."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Where documents start and end in a flat sequence of T tokens."""

    cu_seqlens: Tensor
    """(D + 1,) int32, on the device of the tokens."""
    lengths: tuple[int, ...]
    longest: int
    """Tokens of the longest document, its prefix included."""
    groups: tuple[Group, ...]
    """Documents of one length that lie next to each other, for calls that take several at once."""
    rows: Tensor | None = None
    """(S,) int64, ascending: rows of the last hidden states that are needed; None: all."""
    last_layer: int | None = None
    """Index of the decoder layer that computes only `rows` after its attention; None: no layer does."""
    prefixes: tuple[tuple[int, int], ...] = ()
    """(first row, tokens) of what each document goes on from; (0, 0) nothing. Empty: no document does."""
    shared: SequenceGroup | None = None
    """The processes that have the T tokens together, each an equal part; None: this one has all of them."""

    @cached_property
    def schedule(self) -> Schedule:
        """Tiles for the engine's own kernels; made on first use, shared by all layers."""
        return Schedule.of(self.lengths, self.cu_seqlens.device, self.prefixes)

    @cached_property
    def seen(self) -> tuple[Tensor | None, Tensor]:
        """Rows of the keys that documents see, one document after the other ((T',) int64; None: all, as they lie), and
        where those of each document end ((D + 1,) int32); for kernels that know no prefixes. Waits for nothing."""
        if not self.prefixes:
            return None, self.cu_seqlens
        starts = accumulate(self.lengths, initial=0)
        rows = [
            np.r_[lead : lead + shared, start : start + length]
            for start, length, (lead, shared) in zip(starts, self.lengths, self.prefixes, strict=False)
        ]
        ends = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        device = self.cu_seqlens.device
        taken, bounds = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(ends)
        if device.type == "cuda":
            taken, bounds = taken.pin_memory(), bounds.pin_memory()
        return taken.to(device, non_blocking=True), bounds.to(device, non_blocking=True)

    @classmethod
    def of(cls, cu_seqlens: Tensor, lengths: tuple[int, ...], prefixes: tuple[tuple[int, int], ...] = ()) -> Documents:
        """From boundaries on the device, lengths and prefixes on the host."""
        return cls(
            cu_seqlens=cu_seqlens, lengths=lengths, longest=longest_seen(lengths, prefixes),
            groups=group_by_length(lengths), prefixes=prefixes,
        )  # fmt: skip

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, dropout: float = 0.0
    ) -> Tensor:
        """Scaled-dot-product attention document by document; shapes as `varlen_attention`."""
        settings: dict[str, Any] = {"scale": scale, "window": window, "dropout": dropout}
        if self.prefixes:
            return sdpa_prefixed(query, key, value, self.lengths, self.prefixes, **settings)
        return sdpa_documents(query, key, value, self.groups, **settings)


@dataclass(slots=True)
class Observed:
    """What a model asked of its attention and its masks during one forward pass."""

    windows: list[int | None] = field(default_factory=list)
    """Sliding window of each attention call, in order."""
    mask_windows: set[int] = field(default_factory=set)
    """Local windows (or chunks) asked of the mask function."""
    custom_masks: bool = False
    """A mask pattern besides causal and sliding was asked for."""


_observed: ContextVar[Observed | None] = ContextVar("luthier_observed_attention", default=None)


def note_window(window: int | None) -> None:
    """Tell a running `observe` which window an attention call uses."""
    record = _observed.get()
    if record is not None:
        record.windows.append(window)


@contextmanager
def observe() -> Iterator[Observed]:
    """Record what models ask of attention and masks inside the block.

    The mask function is in transformers' table only here: where it knows an implementation's masks it looks for packed
    documents in the positions, which waits for the device in every forward pass; where it does not, it makes no mask.
    """
    from transformers.masking_utils import AttentionMaskInterface

    record = Observed()
    token = _observed.set(record)
    AttentionMaskInterface.register(NAME, no_mask)
    try:
        yield record
    finally:
        _observed.reset(token)
        AttentionMaskInterface._global_mapping.pop(NAME, None)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    luthier_documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface.

    Shapes: query (1, H, T, K), key and value (1, G, T, K); returns (1, T, H, K).

    Raises:
        UnsupportedAttention: the call asks for something this function does not compute.
    """
    if luthier_documents is None:
        raise UnsupportedAttention(
            "the model was called without document boundaries while packed attention is on; "
            "use `engine.loss(batch)`, or `with engine.inference():` around other calls"
        )
    _refuse_unknown(module, query, key, attention_mask, luthier_documents, kwargs)
    note_window(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = None if sliding_window is None or sliding_window >= luthier_documents.longest else sliding_window
    # The kernel takes 16-bit types only; float32 on a GPU goes document by document.
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and not dropout and has_varlen_kernel() and value.shape[-1] == query.shape[-1]:
        return _varlen_kernel(query, key, value, luthier_documents, scale=scale, window=window), None
    return luthier_documents.attend(query, key, value, scale=scale, window=window, dropout=dropout), None


def no_mask(*_: Any, local_size: int | None = None, use_vmap: bool = False, **__: Any) -> None:
    """Mask function of transformers' interface: documents and causality are the attention function's business."""
    record = _observed.get()
    if record is not None:
        record.custom_masks |= use_vmap
        if local_size is not None:
            record.mask_windows.add(local_size)


@cache
def register() -> None:
    """Put the attention function under `NAME` into transformers' table."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)


@cache
def has_varlen_kernel() -> bool:
    """Whether this torch has the variable-length kernel for CUDA."""
    if not torch.cuda.is_available():
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _refuse_unknown(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    documents: Documents,
    kwargs: dict[str, Any],
) -> None:
    if attention_mask is not None:
        raise UnsupportedAttention(f"{type(module).__name__} passes a ready-made attention mask")
    if documents.shared is not None:
        raise UnsupportedAttention(f"{type(module).__name__} does not exchange heads with the other processes")
    if query.shape[0] != 1 or query.shape[2] != sum(documents.lengths) or key.shape[2] != query.shape[2]:
        raise UnsupportedAttention(
            f"{type(module).__name__} attends over queries {tuple(query.shape)} and keys {tuple(key.shape)}, "
            f"not over one flat sequence of {sum(documents.lengths)} tokens"
        )
    is_causal = kwargs.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UnsupportedAttention(f"{type(module).__name__} is not causal")
    for name, setting in kwargs.items():
        if name not in _HARMLESS and setting is not None and setting is not False:
            raise UnsupportedAttention(f"{type(module).__name__} passes `{name}`, which packed attention does not know")


def _varlen_kernel(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, *, scale: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Left edge of the window counts keys *before* the query, transformers counts the query's own too.
    edges = (-1 if window is None else window - 1, 0)
    grouped = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    if grouped and not _kernel_groups_heads():
        repeats = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1), {}
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    rows, ends = documents.seen
    if rows is not None:
        k, v = k.index_select(0, rows), v.index_select(0, rows)
    # Where there are more keys than queries, the last query stands at the last key.
    out = varlen_attn(
        q, k, v, documents.cu_seqlens, ends, max(documents.lengths), documents.longest, scale=scale,
        window_size=edges, **grouped,
    )  # fmt: skip
    return out.unsqueeze(0)


@cache
def _kernel_groups_heads() -> bool:
    """torch 2.13 needs `enable_gqa=True` for grouped heads; 2.11 may not know the argument."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
