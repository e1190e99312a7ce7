"""The big matrix of linear layers that share their input, and its products, for each way of storing it.

    Dense       one stacked matrix W (N, K); the layers' weights are views of it
    Extended    W inside E (N + P, K + P): rows N.. are the adapters' A, columns K.. their B (see `lora.py`),
                so that  [x | u] E[:N]^T = x W^T + u B^T   and   [g | v] E[:, :K] = g W + v A
                are one product each
    Dequantized a 4-bit base unpacked anew for each product (the same values as a kept copy)
    Gathered    what the modules hold now: FSDP2 gathers the weights of a layer for its passes and frees them after
    GatheredQuantized    the same for a 4-bit base: the packed bytes are gathered, and unpacked for each product
    Fp8         `fp8_base.py`

A 4-bit base that is to be kept unpacked is a Dense or Extended one made from the unpacked values.

Legend: M rows, K inputs, N outputs, P adapter columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from luthier.fast.decoder.linears import LinearView
from luthier.fast.decoder.lora import PAD
from luthier.fast.products import grad_input, grad_weight, product, products_beside
from luthier.model.packed import PackedLinear

__all__ = ["Base", "Dense", "Dequantized", "Extended", "Gathered", "GatheredQuantized", "bias_of", "unpack"]


class Base(Protocol):
    """What a projection asks of its matrix."""

    def forward(self, x_mk: Tensor) -> Tensor:
        """x W^T + bias, (M, N), a fresh tensor."""
        ...

    def input_gradient(self, g_mn: Tensor) -> Tensor:
        """g W, (M, K), a fresh tensor."""
        ...


def bias_of(views: Sequence[LinearView]) -> Tensor | None:
    """Biases of the layers as one (N,) tensor of which they become views; None without any.

    Raises:
        ValueError: some layers have one and some not.
    """
    biases = [view.base.bias for view in views]
    if all(bias is None for bias in biases):
        return None
    if any(bias is None for bias in biases):
        raise ValueError("some of the layers have a bias and some not")
    return _stack([bias for bias in biases if bias is not None])


def unpack(view: LinearView, dtype: torch.dtype) -> Tensor:
    """The matrix (N, K) of a layer in `dtype`; a 4-bit one dequantised by bitsandbytes."""
    weight = view.base.weight
    if not view.quantized:
        return weight.data.to(view.device)
    if isinstance(view.base, PackedLinear):
        return view.base.unpacked().to(dtype)
    import bitsandbytes.functional as bnb

    # bitsandbytes rounds to the type of the quantisation state; its own product uses the same values.
    return bnb.dequantize_4bit(weight.data, weight.quant_state).to(dtype)


def _stack(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor along the first axis; the parameters become views of it."""
    if len(parameters) == 1:
        return parameters[0].data
    stacked = torch.cat([parameter.data for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = stacked[start : start + parameter.shape[0]]
        start += parameter.shape[0]
    return stacked


class Dense:
    """One stacked matrix."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype) -> None:
        if any(view.quantized for view in views):
            self.weight_nk = torch.cat([unpack(view, dtype) for view in views])
        else:
            self.weight_nk = _stack([view.base.weight for view in views])
        self.bias_n = bias_of(views)

    def forward(self, x_mk: Tensor) -> Tensor:
        """x W^T + bias."""
        return product(x_mk, self.weight_nk, self.bias_n)

    def input_gradient(self, g_mn: Tensor) -> Tensor:
        """g W."""
        return grad_input(g_mn, self.weight_nk)

    def weight_gradient(self, g_mn: Tensor, x_mk: Tensor, rows: slice) -> Tensor:
        """g^T x for some of the outputs."""
        return grad_weight(g_mn[:, rows], x_mk)


class Extended:
    """See the head of this file."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype, columns: int) -> None:
        self.outputs, self.inputs = sum(view.out_features for view in views), views[0].in_features
        assert columns % PAD == 0
        device = views[0].base.weight.device
        self.matrix = torch.zeros(self.outputs + columns, self.inputs + columns, dtype=dtype, device=device)
        start = 0
        for view in views:
            place = self.matrix[start : start + view.out_features, : self.inputs]
            place.copy_(unpack(view, dtype))
            if not view.quantized:
                view.base.weight.data = place
            start += view.out_features
        self.bias_n = bias_of(views)
        self.a_pk = self.matrix[self.outputs :, : self.inputs]
        self.b_np = self.matrix[: self.outputs, self.inputs :]

    def forward(self, x_mk: Tensor) -> Tensor:
        """x W^T + bias, without the adapters."""
        return product(x_mk, self.matrix[: self.outputs, : self.inputs], self.bias_n)

    def forward_wide(self, xu: Tensor) -> Tensor:
        """[x | u] (M, K + P) -> x W^T + u B^T + bias."""
        return product(xu, self.matrix[: self.outputs], self.bias_n)

    def input_gradient(self, g_mn: Tensor) -> Tensor:
        """g W, without the adapters."""
        return grad_input(g_mn, self.matrix[: self.outputs, : self.inputs])

    def input_gradient_wide(self, gv: Tensor) -> Tensor:
        """[g | v] (M, N + P) -> g W + v A."""
        return grad_input(gv, self.matrix[:, : self.inputs])


class Dequantized:
    """4-bit matrices, unpacked for each product."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype) -> None:
        self.views, self.dtype = tuple(views), dtype
        self.bias_n = bias_of(views)

    def _weight(self) -> Tensor:
        parts = [unpack(view, self.dtype) for view in self.views]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(self, x_mk: Tensor) -> Tensor:
        """x W^T + bias."""
        return product(x_mk, self._weight(), self.bias_n)

    def input_gradient(self, g_mn: Tensor) -> Tensor:
        """g W."""
        return grad_input(g_mn, self._weight())


class GatheredQuantized(Dequantized):
    """4-bit matrices whose bytes are whole only inside their layer's passes."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype) -> None:
        self.views, self.dtype = tuple(views), dtype

    @property
    def bias_n(self) -> Tensor | None:  # type: ignore[override]
        """The biases as the modules hold them now."""
        biases = [view.base.bias for view in self.views]
        if biases[0] is None:
            return None
        return torch.cat([bias.detach() for bias in biases])


class Gathered:
    """Matrices that are whole only inside their layer's passes; one product each, into its columns of the result."""

    def __init__(self, views: Sequence[LinearView]) -> None:
        self.views = tuple(views)

    def _weights(self) -> list[Tensor]:
        return [view.base.weight.detach() for view in self.views]

    def forward(self, x_mk: Tensor) -> Tensor:
        """x W^T + bias."""
        biases = [None if view.base.bias is None else view.base.bias.detach() for view in self.views]
        return products_beside(x_mk, self._weights(), biases)

    def input_gradient(self, g_mn: Tensor) -> Tensor:
        """g W, summed over the matrices."""
        weights = self._weights()
        parts = g_mn.split([weight.shape[0] for weight in weights], dim=1)
        total = grad_input(parts[0], weights[0])
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total.addmm_(part, weight)
        return total

    def weight_gradient(self, g_mn: Tensor, x_mk: Tensor, rows: slice) -> Tensor:
        """g^T x for some of the outputs."""
        return grad_weight(g_mn[:, rows], x_mk)
