"""A tensor times a scalar that lives on the device, rounded once: what the backward pass of the head does."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton

__all__ = ["scaled_", "scaled_reference_"]


def scaled_(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor as `dtype`: in place if x has that dtype, else into a new tensor. x dense, factor fp32 scalar.

    The product is made in fp32 and rounded once; a torch product would first round the factor to the dtype of x.
    """
    if uses_triton(x):
        from luthier.fast.kernels import scale_triton

        return scale_triton.scaled_(x, factor, dtype)
    return scaled_reference_(x, factor, dtype)


def scaled_reference_(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Definition of `scaled_`."""
    if x.dtype == torch.float32 and dtype == x.dtype:
        return x.mul_(factor)
    product = x * factor.reshape([1] * max(1, x.ndim))
    return x.copy_(product) if x.dtype == dtype else product.to(dtype)
