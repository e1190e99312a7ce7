"""RMS norm with the residual sum before it, and its gradient.

    h    = x + residual                      rounded to the dtype of x
    rstd = 1 / sqrt(mean(h^2) + eps)
    n    = round(h rstd) w                   Llama and its kin: rounded to the dtype, then multiplied in the dtype
    n    = round(h rstd (1 + w))             Gemma (`plus_one`): rounded once

with g = dn w (or dn (1 + w)) and mean over the row,

    dh   = rstd (g - h rstd mean(g h rstd)) + dh_residual
    dw   = sum over rows of dn h rstd        in fp32

The rounding inside Llama's n is taken as the identity in its gradient. Legend: M rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.choice import math_dtype, uses_triton

__all__ = [
    "add_rms_norm",
    "add_rms_norm_reference",
    "rms_norm_again",
    "rms_norm_again_reference",
    "rms_norm_backward",
    "rms_norm_backward_reference",
]


def add_rms_norm(
    x_md: Tensor,
    weight_d: Tensor,
    *,
    eps: float,
    residual_md: Tensor | None = None,
    plus_one: bool = False,
    out_md: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, h, rstd): normalised rows (M, D), their input x + residual (x itself without one), fp32 rstd (M,).

    `out_md` takes n and may not overlap x or the residual. fp64 inputs give an fp64 rstd.
    """
    if uses_triton(x_md):
        from luthier.fast.kernels import norm_triton

        return norm_triton.add_rms_norm(x_md, weight_d, eps, residual_md, plus_one, out_md)
    return add_rms_norm_reference(x_md, weight_d, eps=eps, residual_md=residual_md, plus_one=plus_one, out_md=out_md)


def rms_norm_again(
    h_md: Tensor, weight_d: Tensor, rstd_m: Tensor, *, plus_one: bool = False, out_md: Tensor | None = None
) -> Tensor:
    """The same n (M, D), to the bit, from the h and rstd that `add_rms_norm` returned."""
    if uses_triton(h_md):
        from luthier.fast.kernels import norm_triton

        return norm_triton.rms_norm_again(h_md, weight_d, rstd_m, plus_one, out_md)
    return rms_norm_again_reference(h_md, weight_d, rstd_m, plus_one=plus_one, out_md=out_md)


def rms_norm_backward(
    dn_md: Tensor,
    h_md: Tensor,
    weight_d: Tensor,
    rstd_m: Tensor,
    *,
    plus_one: bool = False,
    dh_md: Tensor | None = None,
    out_md: Tensor | None = None,
    need_weight: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(gradient of h (M, D), fp32 gradient of the weight (D,) if `need_weight`).

    `dh_md` is the gradient that reaches h on the residual path; `out_md` may be `dh_md` or `dn_md` itself.
    """
    if uses_triton(dn_md):
        from luthier.fast.kernels import norm_triton

        return norm_triton.rms_norm_backward(dn_md, h_md, weight_d, rstd_m, plus_one, dh_md, out_md, need_weight)
    return rms_norm_backward_reference(
        dn_md, h_md, weight_d, rstd_m, plus_one=plus_one, dh_md=dh_md, out_md=out_md, need_weight=need_weight
    )


def add_rms_norm_reference(
    x_md: Tensor,
    weight_d: Tensor,
    *,
    eps: float,
    residual_md: Tensor | None = None,
    plus_one: bool = False,
    out_md: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Definition of `add_rms_norm`."""
    h_md = x_md if residual_md is None else x_md + residual_md
    length_m = torch.linalg.vector_norm(h_md, dim=-1, dtype=math_dtype(h_md))
    rstd_m = length_m.square_().div_(h_md.shape[1]).add_(eps).rsqrt_()
    return rms_norm_again_reference(h_md, weight_d, rstd_m, plus_one=plus_one, out_md=out_md), h_md, rstd_m


def rms_norm_again_reference(
    h_md: Tensor, weight_d: Tensor, rstd_m: Tensor, *, plus_one: bool = False, out_md: Tensor | None = None
) -> Tensor:
    """Definition of `rms_norm_again`."""
    n_md = torch.empty_like(h_md, memory_format=torch.contiguous_format) if out_md is None else out_md
    scaled_md = h_md.to(math_dtype(h_md)) * rstd_m[:, None]
    if plus_one:
        return n_md.copy_(scaled_md.mul_(1.0 + weight_d.to(scaled_md.dtype)))
    return torch.mul(scaled_md.to(h_md.dtype), weight_d.to(h_md.dtype), out=n_md)


def rms_norm_backward_reference(
    dn_md: Tensor,
    h_md: Tensor,
    weight_d: Tensor,
    rstd_m: Tensor,
    *,
    plus_one: bool = False,
    dh_md: Tensor | None = None,
    out_md: Tensor | None = None,
    need_weight: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Definition of `rms_norm_backward`."""
    dtype = math_dtype(dn_md)
    dn, scale_d = dn_md.to(dtype), weight_d.to(dtype)
    hat_md = h_md.to(dtype) * rstd_m[:, None]
    dweight_d = (dn * hat_md).sum(dim=0) if need_weight else None
    g_md = dn * (1.0 + scale_d if plus_one else scale_d)
    mean_m1 = (g_md * hat_md).mean(dim=-1, keepdim=True)
    grad_md = g_md.sub_(hat_md.mul_(mean_m1)).mul_(rstd_m[:, None])
    if dh_md is not None:
        grad_md.add_(dh_md)
    if out_md is not None:
        return out_md.copy_(grad_md), dweight_d
    return grad_md.to(dn_md.dtype), dweight_d
