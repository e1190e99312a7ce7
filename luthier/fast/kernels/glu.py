"""Gated linear unit on a stacked [gate | up] and its gradient.

    product = act(gate) up          d up = d product act(gate)          d gate = d product up act'(gate)

act is `silu`, `gelu` (exact) or `gelu_tanh`. Legend: M rows, F intermediate width; gate_up is (M, 2 F).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from luthier.fast.kernels.choice import math_dtype, uses_triton

__all__ = ["Activation", "glu", "glu_backward", "glu_backward_reference", "glu_reference"]

Activation = Literal["silu", "gelu_tanh", "gelu"]


def glu(gate_up_m2f: Tensor, act: Activation, *, out_mf: Tensor | None = None) -> Tensor:
    """act(gate) * up, (M, F), rounded once."""
    if uses_triton(gate_up_m2f):
        from luthier.fast.kernels import glu_triton

        return glu_triton.glu(gate_up_m2f, act, out_mf)
    return glu_reference(gate_up_m2f, act, out_mf=out_mf)


def glu_backward(
    dprod_mf: Tensor,
    gate_up_m2f: Tensor,
    act: Activation,
    *,
    out_m2f: Tensor | None = None,
    prod_out_mf: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(gradient of gate_up (M, 2 F), the product again in `prod_out_mf` if that is given), in one launch.

    `out_m2f` may be `gate_up_m2f` itself and `prod_out_mf` may be `dprod_mf` itself.
    """
    if uses_triton(gate_up_m2f):
        from luthier.fast.kernels import glu_triton

        return glu_triton.glu_backward(dprod_mf, gate_up_m2f, act, out_m2f, prod_out_mf)
    return glu_backward_reference(dprod_mf, gate_up_m2f, act, out_m2f=out_m2f, prod_out_mf=prod_out_mf)


def glu_reference(gate_up_m2f: Tensor, act: Activation, *, out_mf: Tensor | None = None) -> Tensor:
    """Definition of `glu`."""
    gate, up = gate_up_m2f.chunk(2, dim=1)
    prod = _activate(gate.to(math_dtype(gate)), act).mul_(up)
    return prod.to(gate.dtype) if out_mf is None else out_mf.copy_(prod)


def glu_backward_reference(
    dprod_mf: Tensor,
    gate_up_m2f: Tensor,
    act: Activation,
    *,
    out_m2f: Tensor | None = None,
    prod_out_mf: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Definition of `glu_backward`."""
    dtype = math_dtype(gate_up_m2f)
    gate, up = (half.to(dtype) for half in gate_up_m2f.chunk(2, dim=1))
    dprod = dprod_mf.to(dtype)
    active = _activate(gate, act)
    dup = dprod * active
    dactive = dprod * up
    if act == "silu":
        dgate = torch.ops.aten.silu_backward(dactive, gate)
    else:
        dgate = torch.ops.aten.gelu_backward(dactive, gate, approximate="tanh" if act == "gelu_tanh" else "none")
    if prod_out_mf is not None:
        prod_out_mf.copy_(active.mul_(up))
    out = torch.empty(gate_up_m2f.shape, dtype=gate_up_m2f.dtype, device=gate.device) if out_m2f is None else out_m2f
    f = gate.shape[1]
    out[:, :f].copy_(dgate)
    out[:, f:].copy_(dup)
    return out, prod_out_mf


def _activate(gate: Tensor, act: Activation) -> Tensor:
    if act == "silu":
        return functional.silu(gate)
    return functional.gelu(gate, approximate="tanh" if act == "gelu_tanh" else "none")
