"""Rotary position embedding, in place if wanted, and the gradient of a stacked q|k|v.

transformers' `rotate_half` convention on the first `rot` columns of each head, the rest copied. With x1, x2
the two halves of these columns and c1|c2 = cos, s1|s2 = sin:

    y1 = x1 c1 - x2 s1          inverse (the transpose):   x1 = y1 c1 + y2 s2
    y2 = x2 c2 + x1 s2                                     x2 = y2 c2 - y1 s1

The halves of cos and sin need not be equal. Legend: M rows, H heads, G key/value heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.choice import math_dtype, uses_triton

__all__ = ["rope", "rope_qkv_backward", "rope_qkv_backward_reference", "rope_reference"]


def rope(
    x_mhk: Tensor, cos_mr: Tensor, sin_mr: Tensor, *, inverse: bool = False, out_mhk: Tensor | None = None
) -> Tensor:
    """Rotated heads (M, H, K). cos and sin: (M, rot), rot even and at most K. `out_mhk` may be `x_mhk` itself."""
    if uses_triton(x_mhk):
        from luthier.fast.kernels import rope_triton

        return rope_triton.rope(x_mhk, cos_mr, sin_mr, inverse, out_mhk)
    return rope_reference(x_mhk, cos_mr, sin_mr, inverse=inverse, out_mhk=out_mhk)


def rope_qkv_backward(
    dq_mhk: Tensor, dk_mgk: Tensor, dv_mgk: Tensor, cos_mr: Tensor, sin_mr: Tensor, out_m: Tensor
) -> Tensor:
    """Write [rope^T dq | rope^T dk | dv] into `out_m` (M, (H + 2 G) K), in one launch; returns it."""
    if uses_triton(dq_mhk):
        from luthier.fast.kernels import rope_triton

        return rope_triton.rope_qkv_backward(dq_mhk, dk_mgk, dv_mgk, cos_mr, sin_mr, out_m)
    return rope_qkv_backward_reference(dq_mhk, dk_mgk, dv_mgk, cos_mr, sin_mr, out_m)


def rope_reference(
    x_mhk: Tensor, cos_mr: Tensor, sin_mr: Tensor, *, inverse: bool = False, out_mhk: Tensor | None = None
) -> Tensor:
    """Definition of `rope`."""
    out = torch.empty_like(x_mhk, memory_format=torch.contiguous_format) if out_mhk is None else out_mhk
    rot = cos_mr.shape[1]
    half, dtype = rot // 2, math_dtype(x_mhk)
    c1, c2 = cos_mr.to(dtype)[:, None, :].split(half, dim=-1)
    s1, s2 = sin_mr.to(dtype)[:, None, :].split(half, dim=-1)
    x1, x2 = x_mhk[..., :half].to(dtype), x_mhk[..., half:rot].to(dtype)
    if inverse:
        y1, y2 = (x1 * c1).addcmul_(x2, s2), (x2 * c2).addcmul_(x1, s1, value=-1)
    else:
        y1, y2 = (x1 * c1).addcmul_(x2, s1, value=-1), (x2 * c2).addcmul_(x1, s2)
    out[..., :half].copy_(y1)
    out[..., half:rot].copy_(y2)
    if rot < x_mhk.shape[2] and out_mhk is not x_mhk:
        out[..., rot:].copy_(x_mhk[..., rot:])
    return out


def rope_qkv_backward_reference(
    dq_mhk: Tensor, dk_mgk: Tensor, dv_mgk: Tensor, cos_mr: Tensor, sin_mr: Tensor, out_m: Tensor
) -> Tensor:
    """Definition of `rope_qkv_backward`."""
    heads, groups = dq_mhk.shape[1], dk_mgk.shape[1]
    q_out, k_out, v_out = out_m.unflatten(1, (heads + 2 * groups, -1)).split((heads, groups, groups), dim=1)
    rope_reference(dq_mhk, cos_mr, sin_mr, inverse=True, out_mhk=q_out)
    rope_reference(dk_mgk, cos_mr, sin_mr, inverse=True, out_mhk=k_out)
    v_out.copy_(dv_mgk)
    return out_m
