"""From the stacked q|k|v product to rotated heads, and back.

Without head norms queries and keys are rotated where they lie. With them (Qwen3, Gemma 3) they are copied,
normalised head by head and rotated in the copy; the product stays as it was, for the gradient.

Legend: T tokens, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from luthier.fast.decoder.program import LayerProgram
from luthier.fast.decoder.spec import Norm
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_backward
from luthier.fast.kernels.rope import rope

__all__ = ["Rotated", "heads_backward", "rotate_heads"]

Triple = tuple[Tensor, Tensor, Tensor]


class Rotated(NamedTuple):
    """Heads for attention."""

    heads: Triple
    """(T, H, K), (T, G, K), (T, G, K)."""
    query: Tensor | None
    """(T, H K), where it is no part of the product."""
    key: Tensor | None
    query_rstd: Tensor | None
    key_rstd: Tensor | None


def rotate_heads(program: LayerProgram, qkv: Tensor, cos: Tensor, sin: Tensor) -> Rotated:
    """Heads of the product `qkv` (T, (H + 2 G) K)."""
    parts = program.parts
    if parts.query_norm is None or parts.key_norm is None:
        turned = qkv[:, : program.query_width + program.key_width].unflatten(1, (-1, parts.head_dim))
        rope(turned, cos, sin, out_mhk=turned)
        return Rotated(program.heads_of(qkv, None, None), None, None, None, None)
    raw_query, raw_key, _ = program.split(qkv)
    query, query_rstd = _normalise(raw_query, parts.query_norm, parts.head_dim)
    key, key_rstd = _normalise(raw_key, parts.key_norm, parts.head_dim)
    for part in (query, key):
        rows = part.unflatten(1, (-1, parts.head_dim))
        rope(rows, cos, sin, out_mhk=rows)
    return Rotated(program.heads_of(qkv, query, key), query, key, query_rstd, key_rstd)


def heads_backward(
    program: LayerProgram, qkv: Tensor | None, rstds: tuple[Tensor | None, Tensor | None], out: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Turn the gradient of the heads before rotation, in `out` (T, (H + 2 G) K), into that of the product.

    Returns the gradients of the head norms' weights.
    """
    parts = program.parts
    if parts.query_norm is None or parts.key_norm is None:
        return None, None
    assert qkv is not None, "the product before its heads were normalised"
    found = []
    for norm, rstd, raw, place in zip(
        (parts.query_norm, parts.key_norm), rstds, program.split(qkv), program.split(out), strict=False
    ):
        assert rstd is not None
        grad, d_weight = rms_norm_backward(
            place.reshape(-1, parts.head_dim), raw.reshape(-1, parts.head_dim), norm.weight, rstd,
            plus_one=norm.plus_one, need_weight=norm.weight.requires_grad,
        )  # fmt: skip
        place.copy_(grad.view(place.shape))
        found.append(d_weight)
    return found[0], found[1]


def _normalise(part: Tensor, norm: Norm, head_dim: int) -> tuple[Tensor, Tensor]:
    rows = part.reshape(-1, head_dim)
    out = torch.empty_like(rows)
    _, _, rstd = add_rms_norm(rows, norm.weight, eps=norm.eps, plus_one=norm.plus_one, out_md=out)
    return out.view(part.shape), rstd
