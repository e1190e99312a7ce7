"""The gated linear unit and its gradient with the adapters' thin products added on the way.

With low-rank adapters the input of the unit is raw + u b^T and the gradient that reaches it raw' + v a. Adding a
product of rank 16 to a matrix by itself reads and writes the whole matrix (0.77 ms for 16,384 x 28,672 on an H200,
three quarters of the time of the unit); here the tile that is being read anyway gets it:

    gate_up = raw + u b^T          product  = act(gate) up
    dprod   = raw' + v a           gradients as in `glu.py`

Legend: M rows, F intermediate width, P and Q columns of the adapters; raw is (M, 2 F), u (M, P), b (2 F, P),
raw' (M, F), v (M, Q), a (Q, F).
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton
from luthier.fast.kernels.glu import Activation, glu_backward_reference, glu_reference

__all__ = ["MAX_COLUMNS", "glu_adapted", "glu_adapted_backward"]

MAX_COLUMNS = 128
"""Most adapter columns that ride along; wider ones are better off with a product of their own."""


def glu_adapted(raw_m2f: Tensor, act: Activation, u_mp: Tensor, b_2fp: Tensor, *, out_mf: Tensor) -> Tensor:
    """act(gate) * up of gate_up = raw + u b^T, into `out_mf` (any row stride)."""
    if uses_triton(raw_m2f):
        from luthier.fast.kernels import glu_adapted_triton

        return glu_adapted_triton.glu_adapted(raw_m2f, act, u_mp, b_2fp, out_mf)
    return glu_reference(torch.addmm(raw_m2f, u_mp, b_2fp.t()), act, out_mf=out_mf)


def glu_adapted_backward(
    raw_dprod_mf: Tensor,
    raw_m2f: Tensor,
    act: Activation,
    *,
    up: tuple[Tensor, Tensor] | None,
    down: tuple[Tensor, Tensor] | None,
    out_m2f: Tensor,
    prod_out_mf: Tensor | None = None,
) -> None:
    """Gradient of gate_up into `out_m2f`, and the product again into `prod_out_mf` if that is given.

    Args:
        raw_dprod_mf: gradient of the product, without the adapters' part.
        raw_m2f: gate_up without the adapters' part.
        act: the activation.
        up: (u, b) of gate_up, or None where `raw_m2f` is complete.
        down: (v, a) of the product's gradient, or None where `raw_dprod_mf` is complete.
        out_m2f: any row stride; may be `raw_m2f` itself.
        prod_out_mf: may be `raw_dprod_mf` itself.
    """
    if uses_triton(raw_m2f):
        from luthier.fast.kernels import glu_adapted_triton

        glu_adapted_triton.glu_adapted_backward(raw_dprod_mf, raw_m2f, act, up, down, out_m2f, prod_out_mf)
        return
    gate_up = raw_m2f if up is None else torch.addmm(raw_m2f, up[0], up[1].t())
    dprod = raw_dprod_mf if down is None else torch.addmm(raw_dprod_mf, down[0], down[1])
    glu_backward_reference(dprod, gate_up, act, out_m2f=out_m2f, prod_out_mf=prod_out_mf)
