"""Rows in 8-bit floats (e4m3) with one scale a row, made alone or in the pass that produces the rows.

    scale = max |x| / 448   (1 for a row of zeros; 448 is the largest finite e4m3 number)
    q     = x (1 / scale) rounded to the nearest e4m3 number, so that x is about scale q

The scale comes from the values as they are stored, rounded to their dtype. Legend: M rows, K width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton
from luthier.fast.kernels.glu import Activation, glu_reference
from luthier.fast.kernels.norm import add_rms_norm_reference

__all__ = ["E4M3_MAX", "add_rms_norm_fp8", "glu_fp8", "quantize_rows", "quantize_rows_reference"]

E4M3_MAX = 448.0


def quantize_rows(x_mk: Tensor, *, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(q (M, K) float8_e4m3fn, scale (M, 1) fp32). `out` takes q and may have any row stride."""
    if uses_triton(x_mk):
        from luthier.fast.kernels import fp8_triton

        return fp8_triton.quantize_rows(x_mk, out)
    return quantize_rows_reference(x_mk, out=out)


def add_rms_norm_fp8(
    x_md: Tensor, weight_d: Tensor, *, eps: float, residual_md: Tensor | None = None, plus_one: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(n, h, rstd) of `add_rms_norm` and (q, scale) of n."""
    if uses_triton(x_md):
        from luthier.fast.kernels import norm_triton

        return norm_triton.add_rms_norm_fp8(x_md, weight_d, eps, residual_md, plus_one)
    n_md, h_md, rstd_m = add_rms_norm_reference(x_md, weight_d, eps=eps, residual_md=residual_md, plus_one=plus_one)
    return n_md, h_md, rstd_m, *quantize_rows_reference(n_md)


def glu_fp8(gate_up_m2f: Tensor, act: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """The product of `glu` (M, F) and its (q, scale)."""
    if uses_triton(gate_up_m2f):
        from luthier.fast.kernels import fp8_triton

        return fp8_triton.glu_fp8(gate_up_m2f, act)
    prod_mf = glu_reference(gate_up_m2f, act)
    return prod_mf, *quantize_rows_reference(prod_mf)


def quantize_rows_reference(x_mk: Tensor, *, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Definition of `quantize_rows`."""
    x = x_mk.float()
    amax_m1 = x.abs().amax(dim=1, keepdim=True)
    scale_m1 = torch.where(amax_m1 == 0, 1.0, amax_m1 / E4M3_MAX)
    q_mk = (x * (1.0 / scale_m1)).clamp_(-E4M3_MAX, E4M3_MAX)
    return (q_mk.to(torch.float8_e4m3fn) if out is None else out.copy_(q_mk)), scale_m1
