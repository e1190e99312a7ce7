"""A frozen matrix in 8-bit floats (e4m3), for the named, inexact `quantization: fp8`.

W is rounded twice, once for each product, with one scale a row of the contraction's other side:

    forward         y = x W^T    W as (N, K), scale per output    x per row of x
    input gradient  dx = g W     W^T as (K, N), scale per input   g per row of g

`fit` rounds the first copy anew so that its errors cancel on given inputs (`kernels/compensate.py`); the second stays.

Hopper's 8-bit products want both operands contiguous along the sum, hence two copies: together as
large as one copy in 16 bits. Activations and gradients are rounded row by row when they are used.
The modules keep their own weights (see `Projection`): saving, merging and generation use those.

Legend: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.fast.decoder.linears import LinearView
from luthier.fast.kernels.compensate import compensated_rows, output_error
from luthier.fast.kernels.fp8 import quantize_rows

__all__ = ["Fp8", "scaled_product"]

ROWS = 4096
"""Rows of inputs that are brought to fp32 at once."""


class Fp8:
    """See the head of this file."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype) -> None:
        from luthier.fast.decoder.bases import bias_of, unpack

        weight_nk = torch.cat([unpack(view, dtype) for view in views])
        self.views, self.dtype = tuple(views), dtype
        self.rows_nk, self.rows_scale = quantize_rows(weight_nk)
        self.columns_kn, self.columns_scale = quantize_rows(weight_nk.t().contiguous())
        self.bias_n = bias_of(views)
        self.fitting = False
        """Whether the next forward pass fits the rounding to its inputs before it uses it."""
        self.kept_error: Tensor | None = None
        """What `fit` left of plain rounding's error in the product's output: a share of its root mean square."""

    def forward(self, x_mk: Tensor, quantized: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x W^T + bias, both rounded to 8 bits; `quantized` is x so rounded, if that is there already."""
        rounded = quantized or quantize_rows(x_mk)
        if self.fitting:
            self.fit(*rounded)
        return scaled_product(*rounded, self.rows_nk, self.rows_scale, self.bias_n, self.dtype)

    def fit(self, x_mk: Tensor, x_scale_m1: Tensor) -> None:
        """Round W so that x W^T changes least; where the inputs do not allow it, it stays rounded to nearest."""
        from luthier.fast.decoder.bases import unpack

        weight_nk = torch.cat([unpack(view, self.dtype) for view in self.views])
        gram = torch.zeros(x_mk.shape[1], x_mk.shape[1], device=x_mk.device)
        for rows, scale in zip(x_mk.split(ROWS), x_scale_m1.split(ROWS), strict=True):
            part = rows.float() * scale
            gram.addmm_(part.t(), part)
        plain = output_error(weight_nk, self.rows_nk, self.rows_scale, gram)
        found = self.take_rows(compensated_rows(weight_nk, gram))
        if found is None:
            return
        self.kept_error = (output_error(weight_nk, *found, gram) / plain).sqrt()

    def take_rows(self, rows: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Multiply with these (q, scale) from now on in the forward pass; None changes nothing."""
        if rows is not None:
            self.rows_nk, self.rows_scale = rows
        return rows

    def release(self) -> None:
        """Told after the fit. The modules' own weights stay: saving, merging and generation use them."""

    def input_gradient(self, g_mn: Tensor) -> Tensor:
        """g W, both rounded to 8 bits."""
        return scaled_product(*quantize_rows(g_mn), self.columns_kn, self.columns_scale, None, self.dtype)


def scaled_product(
    x_mk: Tensor, x_scale_m1: Tensor, w_nk: Tensor, w_scale_n1: Tensor, bias_n: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(x scale_x) (w scale_w)^T + bias, summed in fp32; on a CPU through fp32 copies."""
    if x_mk.is_cuda:
        return torch._scaled_mm(
            x_mk,
            w_nk.t(),
            scale_a=x_scale_m1,
            scale_b=w_scale_n1.t(),
            bias=bias_n,
            out_dtype=dtype,
            use_fast_accum=True,
        )  # fmt: skip
    y_mn = (x_mk.float() * x_scale_m1) @ (w_nk.float() * w_scale_n1).t()
    return (y_mn if bias_n is None else y_mn + bias_n.float()).to(dtype)
