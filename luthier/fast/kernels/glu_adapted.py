"""The gated linear unit and its gradient with the adapters' thin products added on the way.

With low-rank adapters the input of the unit is raw + u b^T and the gradient that reaches it raw' + v a. Adding a
product of rank 16 to a matrix by itself reads and writes the whole matrix (0.77 ms for 16,384 x 28,672 on an H200,
more than twice the time of the unit); here the tile that is being read anyway gets it, rank by rank: 16 multiply-adds
a number, which hide behind the memory. (As a matrix product of the tile it was three times slower than the memory:
the tiles change their layout on the way to the tensor cores and back.)

    gate_up = raw + u b^T          product  = act(gate) up
    dprod   = raw' + v a           gradients as in `glu.py`

Legend: M rows, F intermediate width, P and Q columns of the adapters; raw is (M, 2 F), u (M, P), b (2 F, P),
raw' (M, F), v (M, Q), a (Q, F).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton
from luthier.fast.kernels.glu import Activation, glu_backward_reference, glu_reference

__all__ = ["MAX_COLUMNS", "OfGateUp", "OfProduct", "glu_adapted", "glu_adapted_backward"]

MAX_COLUMNS = 64
"""Most adapter columns that ride along (32 for gate and up each): above, the additions outlast the memory's time."""


class OfGateUp(NamedTuple):
    """The adapters' part of gate_up."""

    u_mp: Tensor
    b_2fp: Tensor
    """Block by block: rows of gate are zero but in gate's columns, rows of up but in up's."""
    gate_columns: int
    """Gate's are the first."""
    up_first: int
    up_columns: int


class OfProduct(NamedTuple):
    """The adapters' part of the product's gradient."""

    v_mq: Tensor
    a_qf: Tensor


def glu_adapted(raw_m2f: Tensor, act: Activation, part: OfGateUp, *, out_mf: Tensor) -> Tensor:
    """act(gate) * up of gate_up = raw + u b^T, into `out_mf` (any row stride)."""
    if uses_triton(raw_m2f):
        from luthier.fast.kernels import glu_adapted_triton

        return glu_adapted_triton.glu_adapted(raw_m2f, act, part, out_mf)
    return glu_reference(torch.addmm(raw_m2f, part.u_mp, part.b_2fp.t()), act, out_mf=out_mf)


def glu_adapted_backward(
    raw_dprod_mf: Tensor,
    raw_m2f: Tensor,
    act: Activation,
    *,
    up: OfGateUp | None,
    down: OfProduct | None,
    out_m2f: Tensor,
    prod_out_mf: Tensor | None = None,
) -> None:
    """Gradient of gate_up into `out_m2f`, and the product again into `prod_out_mf` if that is given.

    Args:
        raw_dprod_mf: gradient of the product, without the adapters' part.
        raw_m2f: gate_up without the adapters' part.
        act: the activation.
        up: None where `raw_m2f` is complete.
        down: None where `raw_dprod_mf` is complete.
        out_m2f: any row stride; may be `raw_m2f` itself.
        prod_out_mf: may be `raw_dprod_mf` itself.
    """
    if uses_triton(raw_m2f):
        from luthier.fast.kernels import glu_adapted_triton

        glu_adapted_triton.glu_adapted_backward(raw_dprod_mf, raw_m2f, act, up, down, out_m2f, prod_out_mf)
        return
    gate_up = raw_m2f if up is None else torch.addmm(raw_m2f, up.u_mp, up.b_2fp.t())
    dprod = raw_dprod_mf if down is None else torch.addmm(raw_dprod_mf, *down)
    glu_backward_reference(dprod, gate_up, act, out_m2f=out_m2f, prod_out_mf=prod_out_mf)
