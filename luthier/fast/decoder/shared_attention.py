"""A layer's attention with rotated heads going in and, in the backward pass, gradients of unrotated ones coming out:
by this process alone, or with the others that share the sequence (`fast/exchange.py`).

Legend: T tokens, H query heads, G key/value heads, K head width; t = T / S tokens, h and g heads of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.fast.attention import Documents
from luthier.fast.decoder.core_attention import attend, attend_backward
from luthier.fast.decoder.program import LayerProgram
from luthier.fast.exchange import split_heads
from luthier.fast.kernels.rope import rope
from luthier.model.head_split import HeadSplit

__all__ = ["Attended", "attend_heads", "attend_heads_backward"]

Triple = tuple[Tensor, Tensor, Tensor]


class Attended(NamedTuple):
    """Of one forward pass."""

    a: Tensor
    """(T, h, K)."""
    rows: Tensor
    """(t, H K), the output for this process' tokens; a view of `a` where it has all of them."""
    attention: tuple[Tensor, ...]
    """What `core_attention.attend_backward` needs."""
    exchanged: Tensor | None
    """(T, h + 2 g, K) what was attended over, where heads came from other processes."""


def attend_heads(
    program: LayerProgram, heads: Triple, documents: Documents, known: Sequence[Tensor] | None = None
) -> Attended:
    """Attention over rotated heads (t, H, K), (t, G, K), (t, G, K); `known`: `a`, `rows` and `attention` of the same
    heads from an earlier pass, which is not computed again."""
    settings: dict[str, Any] = {
        "path": program.attention,
        "scale": program.parts.scale,
        "window": program.window(documents),
    }
    shared = documents.shared
    if shared is None:
        if known is not None:
            return Attended(known[0], known[1], tuple(known[2:]), None)
        a, attention = attend(*heads, documents, **settings)
        return Attended(a, a.flatten(1), attention, None)
    split = _split(program, shared.size)
    exchanged = shared.heads_out(heads, split)
    if known is not None:
        return Attended(known[0], known[1], tuple(known[2:]), exchanged)
    a, attention = attend(*split_heads(exchanged, split), documents, **settings)
    return Attended(a, shared.positions_back(a), attention, exchanged)


def attend_heads_backward(
    program: LayerProgram, da: Tensor, heads: Triple | Tensor, a: Tensor, attention: tuple[Tensor, ...],
    documents: Documents, cos: Tensor, sin: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Write the gradient of the heads before rotation into `out` (t, (H + 2 G) K), from `da` (t, H K).

    `heads` are those that went into attention, or `Attended.exchanged`.
    """
    parts, shared = program.parts, documents.shared
    settings: dict[str, Any] = {"path": program.attention, "scale": parts.scale, "window": program.window(documents)}
    if shared is None:
        assert isinstance(heads, tuple)
        attend_backward(
            da.unflatten(1, (parts.heads, -1)), heads, a, attention, documents, cos_sin=(cos, sin), into=out, **settings
        )
        return
    assert isinstance(heads, Tensor)
    split = _split(program, shared.size)
    da_thk = shared.positions_out(da, split)
    grads = torch.empty_like(heads)
    attend_backward(
        da_thk, split_heads(heads, split), a, attention, documents, cos_sin=None, into=grads.flatten(1), **settings
    )
    shared.heads_back(grads, split, out)
    turned = out[:, : program.query_width + program.key_width].unflatten(1, (-1, parts.head_dim))
    rope(turned, cos, sin, inverse=True, out_mhk=turned)


def _split(program: LayerProgram, size: int) -> HeadSplit:
    return HeadSplit(program.parts.heads, program.parts.key_value_heads, size)
