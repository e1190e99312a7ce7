"""What a linear module is at this moment: a plain matrix, or a matrix with one plain LoRA adapter.

Everything else (DoRA, several adapters, merged adapters, hooks, other classes) is named and left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.fast.hooks import has_hooks
from luthier.fast.linear import FastLinear
from luthier.model.hosted import HostLinear
from luthier.model.packed import PackedLinear

__all__ = ["LinearView", "NotPlain", "view_linear"]


class NotPlain(Exception):
    """This module is more than its matrix and one adapter; the reason is the message."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearView:
    """One linear layer, taken apart."""

    module: Any
    """What the decoder layer holds: `nn.Linear`, a 4-bit linear or its sharded form, PEFT's LoRA layer around one."""
    base: Any
    """The layer with the matrix."""
    adapter: str | None = None
    """Name of the one active adapter."""
    dropout: float = 0.0
    scale: float = 1.0
    """alpha / r of the adapter, as PEFT has it."""

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.base.out_features)

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.base.in_features)

    @property
    def device(self) -> torch.device:
        """Where its products are."""
        return self.base.device if isinstance(self.base, HostLinear) else self.base.weight.device

    @property
    def quantized(self) -> bool:
        """Whether the matrix is stored in 4 bits."""
        return isinstance(self.base, PackedLinear) or getattr(self.base.weight, "quant_state", None) is not None

    @property
    def a(self) -> nn.Parameter:
        """(r, K) factor of the adapter."""
        return self.module.lora_A[self.adapter].weight

    @property
    def b(self) -> nn.Parameter:
        """(N, r) factor of the adapter."""
        return self.module.lora_B[self.adapter].weight

    @property
    def rank(self) -> int:
        """r of the adapter."""
        return int(self.module.lora_A[self.adapter].out_features)

    def owners(self) -> list[Any]:
        """The modules that hold its parameters: the base, then the adapter's two factors."""
        if self.adapter is None:
            return [self.base]
        return [self.base, self.module.lora_A[self.adapter], self.module.lora_B[self.adapter]]

    def unchanged(self) -> bool:
        """Whether the adapter (if any) is still the one active, unmerged adapter it was, at its scale."""
        if self.adapter is None:
            return True
        module = self.module
        same = not module.disable_adapters and not module.merged and list(module.active_adapters) == [self.adapter]
        return same and float(module.scaling[self.adapter]) == self.scale


def view_linear(module: nn.Module) -> LinearView:
    """Take a linear module apart.

    Raises:
        NotPlain: it is not a plain linear layer with at most one plain adapter.
    """
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer):
        return LinearView(module, _plain_base(module))
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1 or len(module.active_adapters) != 1:
        raise NotPlain(f"{len(active)} active adapters")
    name = active[0]
    if module.merged or module.disable_adapters:
        raise NotPlain("its adapter is merged or disabled")
    if name in module.lora_variant:
        raise NotPlain(f"adapter variant {type(module.lora_variant[name]).__name__}")
    base = _plain_base(module.get_base_layer())
    a, b = module.lora_A[name], module.lora_B[name]
    if type(a) not in (nn.Linear, FastLinear) or type(b) not in (nn.Linear, FastLinear) or b.bias is not None:
        raise NotPlain(f"adapter factors of type {type(a).__name__}")
    if getattr(module, "fan_in_fan_out", False):
        raise NotPlain("its matrix is stored transposed")
    dtype = _compute_dtype(base)
    if not a.weight.dtype == b.weight.dtype == dtype:
        raise NotPlain(f"adapter in {a.weight.dtype} on a base in {dtype}")
    dropout = float(getattr(module.lora_dropout[name], "p", 0.0))
    return LinearView(module, base, name, dropout, float(module.scaling[name]))


def _plain_base(module: nn.Module) -> nn.Module:
    if has_hooks(module):
        raise NotPlain(f"{type(module).__name__} has hooks")
    if type(module) in (nn.Linear, FastLinear, PackedLinear, HostLinear):
        return module
    if type(module).__name__ == "Linear4bit" and getattr(module.weight, "quant_state", None) is not None:
        return module
    raise NotPlain(f"class {type(module).__name__}")


def _compute_dtype(base: nn.Module) -> torch.dtype:
    if isinstance(base, PackedLinear):
        return base.compute_dtype
    state = getattr(base.weight, "quant_state", None)
    return base.weight.dtype if state is None else (getattr(base, "compute_dtype", None) or state.dtype)
