"""The attention function that models call in a paged forward, through transformers' own table of such functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.attention import has_varlen_kernel
from luthier.generation.paged.kernels import Look, attend, write
from luthier.generation.paged.pool import PagePool

__all__ = ["NAME", "Step", "Unsupported", "paged_attention", "register"]

NAME = "luthier_paged"
# Arguments of attention functions that change nothing here: positions are in the queries already.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "return_dict", "output_hidden_states", "is_causal",
             "output_router_logits", "past_key_values"}  # fmt: skip


class Unsupported(Exception):
    """A model asks for a kind of attention that pages do not have; says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One forward over pages. Tokens of all rows stand behind each other, or (one each) below each other."""

    pool: PagePool
    look: Look
    at: Tensor
    """(N,) where each new token's keys and values go."""
    fresh: bool
    """No row has earlier tokens."""
    seen: list[int] | None = None
    """Layers that came by, for `support.check`."""


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    luthier_step: Step | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, T, Q, D) outputs for (B, Q, T, D) queries, B x T = N; the new keys and values are written.

    Raises:
        Unsupported: a mask, dropout, or an argument that is not known here.
    """
    if luthier_step is None or attention_mask is not None or dropout:
        raise Unsupported(f"{type(module).__name__} passes a mask or dropout, or was called outside of a paged forward")
    for name, given in kwargs.items():
        if name not in _HARMLESS and given is not None and given is not False:
            raise Unsupported(f"{type(module).__name__} passes `{name}` to its attention")
    step, layer = luthier_step, int(module.layer_idx)
    if step.seen is not None:
        step.seen.append(layer)
    rows, heads, tokens, size = query.shape
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    keys, values = step.pool.keys(layer), step.pool.values(layer)
    if k.shape[1:] != keys.shape[1:] or v.shape != k.shape:
        raise Unsupported(f"layer {layer} of {type(module).__name__} has heads of {tuple(k.shape[1:])}")
    write(keys, values, step.at, k, v)
    scale = size**-0.5 if scaling is None else scaling
    plain = step.fresh and softcap is None and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
    if plain and has_varlen_kernel():
        out = _flash(q, k, v, step.look, scale=scale, window=sliding_window)
    else:
        out = attend(q, keys, values, step.look, scale=scale, window=sliding_window, softcap=softcap)
    return out.reshape(rows, tokens, heads, size), None


def _flash(q: Tensor, k: Tensor, v: Tensor, look: Look, *, scale: float, window: int | None) -> Tensor:
    """Prompts that begin here: torch's FlashAttention over rows behind each other, no pages needed."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] and _groups_heads() else {}
    if q.shape[1] != k.shape[1] and not grouped:
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    edges = (-1 if window is None else window - 1, 0)
    out: Tensor = varlen_attn(
        q, k, v, look.starts, look.starts, look.longest, look.longest, scale=scale, window_size=edges, **grouped
    )
    return out


@cache
def _groups_heads() -> bool:
    """torch 2.13 needs `enable_gqa=True` for grouped heads; 2.11 does not know the argument."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@cache
def register() -> None:
    """Put the function into transformers' table; without a mask function of the same name, models make no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, paged_attention)
