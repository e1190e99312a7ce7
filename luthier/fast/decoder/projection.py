"""Linear layers that share their input, as one projection with a hand-written backward.

    y = forward(x)                         dx = input_gradient(g)
    grads = parameter_gradients(g, x)      in the order of `trained`

Inputs and output gradients may come in buffers that are wider than the matrix (`Rows`): the adapters' thin
products go into the spare columns, and base and adapter become one product (`bases.Extended`).

Legend: M rows, K inputs, N outputs, P adapter columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from luthier.fast.decoder.bases import Base, Dense, Dequantized, Extended, Gathered, GatheredQuantized
from luthier.fast.decoder.dropout import Masks
from luthier.fast.decoder.fp8_base import Fp8
from luthier.fast.decoder.fp8_shards import GatheredFp8
from luthier.fast.decoder.linears import LinearView, NotPlain
from luthier.fast.decoder.lora import PAD, StackedLora
from luthier.fast.settings import EngineSettings
from luthier.model.hosted import HostLinear

__all__ = ["Projection", "Rows"]


class Rows(NamedTuple):
    """A matrix (M, W) inside a buffer (M, W + spare)."""

    wide: Tensor
    body: Tensor
    quantized: tuple[Tensor, Tensor] | None = None
    """The body in 8-bit floats with a scale a row, where the kernel that wrote it made that too."""

    @classmethod
    def new(cls, rows: int, width: int, spare: int, like: Tensor) -> Rows:
        """Uninitialised."""
        wide = torch.empty(rows, width + spare, dtype=like.dtype, device=like.device)
        return cls(wide, wide[:, :width])

    @classmethod
    def of(cls, body: Tensor) -> Rows:
        """A matrix without spare columns."""
        return cls(body, body)

    @property
    def tail(self) -> Tensor:
        """The spare columns."""
        return self.wide[:, self.body.shape[1] :]

    @property
    def has_tail(self) -> bool:
        """Whether there are spare columns."""
        return bool(self.wide.shape[1] > self.body.shape[1])


class Projection:
    """See the head of this file."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype, settings: EngineSettings) -> None:
        """Take over the layers: their parameters become views of stacked tensors (`restore` takes that back).

        Raises:
            NotPlain: the layers cannot be one projection.
        """
        _check(views, dtype)
        self.views = tuple(views)
        self.inputs, self.outputs = views[0].in_features, sum(view.out_features for view in views)
        device = settings.device or views[0].device
        adapted = any(view.adapter is not None for view in views)
        base_trains = any(
            p.requires_grad for view in views for p in (view.base.weight, view.base.bias) if p is not None
        )
        packed = any(view.quantized for view in views) and settings.frozen_base != "dequantized"
        extend = device.type == "cuda" if settings.fuse_adapters is None else settings.fuse_adapters
        self.sharded, self.loose = settings.sharded, settings.loose_adapters
        self.base: Base
        self.lora: StackedLora | None = None
        if adapted and settings.frozen_base == "fp8" and not base_trains:
            packed_fp8 = isinstance(views[0].base, HostLinear)
            self.base = GatheredFp8(views, dtype) if packed_fp8 else Fp8(views, dtype)
        elif settings.sharded:
            self.base = GatheredQuantized(views, dtype) if packed else Gathered(views)
        elif packed:
            self.base = Dequantized(views, dtype)
        elif adapted and extend and not base_trains:
            extended = Extended(views, dtype, StackedLora.columns(views, pad=PAD))
            self.base, self.lora = extended, StackedLora(views, extended.a_pk, extended.b_np)
        else:
            self.base = Dense(views, dtype)
        if adapted and self.lora is None:
            self.lora = _separate_lora(views, dtype, device, loose=self.loose)
        self._fixed = None if settings.sharded else self._trained()
        self._taken = [
            (owner, name, parameter, parameter.data_ptr())
            for view in views for owner in view.owners() for name, parameter in owner._parameters.items()
            if parameter is not None and parameter.is_floating_point()
            and not (self.loose or (self.sharded and owner is view.base))
        ]  # fmt: skip

    @property
    def trained(self) -> list[nn.Parameter]:
        """Trained parameters in the order of `parameter_gradients`."""
        return self._trained() if self._fixed is None else self._fixed

    @property
    def spare(self) -> int:
        """Columns that inputs and output gradients should have to spare."""
        return self.lora.a_pk.shape[0] if isinstance(self.base, Extended) and self.lora is not None else 0

    def new_input(self, rows: int, like: Tensor) -> Rows:
        """Buffer for an input."""
        return Rows.new(rows, self.inputs, self.spare, like)

    def new_output_gradient(self, rows: int, like: Tensor) -> Rows:
        """Buffer for a gradient of the output."""
        return Rows.new(rows, self.outputs, self.spare, like)

    def masks(self, training: bool) -> Masks | None:
        """Fresh dropout masks for one forward pass; None without dropout."""
        return None if self.lora is None else self.lora.masks(training)

    @property
    def takes_fp8(self) -> bool:
        """Whether an input is best written in 8 bits as well."""
        return isinstance(self.base, Fp8)

    def _base_forward(self, x: Rows) -> Tensor:
        return self.base.forward(x.body, x.quantized) if isinstance(self.base, Fp8) else self.base.forward(x.body)

    def forward(self, x: Rows, masks: Masks | None) -> tuple[Tensor, Tensor | None]:
        """y (M, N) and the adapters' u (M, P), which the backward pass needs."""
        lora = self.lora
        if lora is None:
            return self._base_forward(x), None
        lora.read()
        if isinstance(self.base, Extended) and x.has_tail:
            u = lora.down(x.body, masks, x.tail)
            return self.base.forward_wide(x.wide), u
        u = lora.down(x.body, masks)
        y = self._base_forward(x)
        lora.add_output_(y, u)
        return y, u

    def down_again(self, x_mk: Tensor, masks: Masks | None) -> Tensor | None:
        """u once more, from the same input."""
        return None if self.lora is None else self.lora.down(x_mk, masks)

    def input_gradient(self, g: Rows, masks: Masks | None, *, needed: bool) -> tuple[Tensor | None, Tensor | None]:
        """dx (M, K), where needed, and the adapters' v (M, P)."""
        lora = self.lora
        if lora is None:
            return (self.base.input_gradient(g.body) if needed else None), None
        v = lora.up(g.body, g.tail if g.has_tail else None)
        if not needed:
            return None, v
        if isinstance(self.base, Extended) and g.has_tail and masks is None:
            return self.base.input_gradient_wide(g.wide), v
        dx = self.base.input_gradient(g.body)
        lora.add_input_gradient_(dx, v, masks)
        return dx, v

    def parameter_gradients(
        self, g_mn: Tensor, x_mk: Tensor | None, u: Tensor | None, v: Tensor | None, masks: Masks | None
    ) -> list[Tensor]:
        """Gradients in the order of `trained`. `x_mk` may be None where nothing is trained."""
        found: list[Tensor] = []
        start = 0
        whole = self._whole_weight_gradient(g_mn, x_mk)
        for view in self.views:
            rows = slice(start, start := start + view.out_features)
            if view.base.weight.requires_grad:
                assert isinstance(self.base, Dense | Gathered) and x_mk is not None
                found.append(self.base.weight_gradient(g_mn, x_mk, rows) if whole is None else whole[rows])
            if view.base.bias is not None and view.base.bias.requires_grad:
                found.append(g_mn[:, rows].sum(dim=0))
        if self.lora is not None and self.lora.blocks and self.lora.blocks[0].a.requires_grad:
            assert x_mk is not None and u is not None and v is not None
            found += self.lora.gradients(g_mn, x_mk, u, v, masks)
        return found

    def unchanged(self) -> bool:
        """Whether every adapter is still what it was when the projection was made."""
        return all(view.unchanged() for view in self.views)

    def holds_weights(self) -> bool:
        """Whether the modules' parameters still lie where the projection put them, or found them."""
        return all(
            owner._parameters.get(name) is parameter and parameter.data_ptr() == place
            for owner, name, parameter, place in self._taken
        )

    def restore(self) -> None:
        """Give the modules tensors of their own again."""
        for view in self.views:
            parameters = [] if self.sharded else [view.base.weight, view.base.bias]
            parameters += [view.a, view.b] if view.adapter is not None and not self.loose else []
            for parameter in parameters:
                if parameter is not None and parameter.is_floating_point():
                    parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def _whole_weight_gradient(self, g_mn: Tensor, x_mk: Tensor | None) -> Tensor | None:
        """One product for all layers when all of them are trained."""
        if not isinstance(self.base, Dense | Gathered) or not all(
            view.base.weight.requires_grad for view in self.views
        ):
            return None
        assert x_mk is not None
        return self.base.weight_gradient(g_mn, x_mk, slice(None))

    def _trained(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = []
        for view in self.views:
            found += [p for p in (view.base.weight, view.base.bias) if p is not None and p.requires_grad]
        if self.lora is not None and self.lora.blocks and self.lora.blocks[0].a.requires_grad:
            found += self.lora.parameters
        return found


def _check(views: Sequence[LinearView], dtype: torch.dtype) -> None:
    if len({view.quantized for view in views}) > 1:
        raise NotPlain("some matrices are quantised and some not")
    if len({view.base.bias is None for view in views}) > 1:
        raise NotPlain("some layers have a bias and some not")
    if len({(view.a.requires_grad, view.b.requires_grad) for view in views if view.adapter is not None}) > 1 or any(
        view.adapter is not None and view.a.requires_grad != view.b.requires_grad for view in views
    ):
        raise NotPlain("some adapter factors are trained and some not")
    for view in views:
        if not view.quantized and view.base.weight.dtype != dtype:
            raise NotPlain(f"weight in {view.base.weight.dtype} in a model in {dtype}")
        if view.base.bias is not None and view.base.bias.dtype != dtype:
            raise NotPlain(f"bias in {view.base.bias.dtype} in a model in {dtype}")
        if view.quantized and view.base.weight.requires_grad:
            raise NotPlain("a quantised matrix cannot be trained")


def _separate_lora(
    views: Sequence[LinearView], dtype: torch.dtype, device: torch.device, *, loose: bool
) -> StackedLora:
    columns = StackedLora.columns(views)
    a_pk = torch.zeros(columns, views[0].in_features, dtype=dtype, device=device)
    b_np = torch.zeros(sum(view.out_features for view in views), columns, dtype=dtype, device=device)
    return StackedLora(views, a_pk, b_np, loose=loose)
