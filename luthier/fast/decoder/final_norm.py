"""The norm after the last layer, through the engine's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.decoder.spec import Norm
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_backward

__all__ = ["packed_norm_class"]


class _Norm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x_md: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        n_md, _, rstd_m = add_rms_norm(x_md, weight, eps=norm.eps, plus_one=norm.plus_one)
        ctx.save_for_backward(x_md, weight, rstd_m)
        ctx.norm = norm
        return n_md

    @staticmethod
    def backward(ctx: Any, dn_md: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_md, weight, rstd_m = ctx.saved_tensors
        dx, d_weight = rms_norm_backward(
            dn_md.contiguous(), x_md, weight, rstd_m, plus_one=ctx.norm.plus_one, need_weight=ctx.needs_input_grad[1]
        )
        return dx, None if d_weight is None else d_weight.to(weight.dtype), None


class _PackedNorm(nn.Module):  # type: ignore[misc]
    """Mixed in before the library's class."""

    luthier_norm: Norm
    luthier_stand_in: Tensor | None = None
    """The tensor of the weight's memory that autograd is given instead of it (`graph.py`)."""

    def forward(self, x: Tensor) -> Tensor:
        """As the library's norm, over the last axis."""
        if x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            result: Tensor = super().forward(x)
            return result
        weight = self.weight if self.luthier_stand_in is None else self.luthier_stand_in
        rows: Tensor = _Norm.apply(x.reshape(-1, x.shape[-1]), weight, self.luthier_norm)
        return rows.view(x.shape)


_classes: dict[type, type] = {}


def packed_norm_class(original: type) -> type:
    """Subclass of a library's norm on the engine's kernels."""
    if original not in _classes:
        _classes[original] = type(f"Packed{original.__name__}", (_PackedNorm, original), {})
    return _classes[original]
