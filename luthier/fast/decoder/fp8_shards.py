"""An fp8 base (`fp8_base.py`) of which each process holds a part.

    pack_fp8(layer, device)      before `fully_shard`, or before ZeRO-3 makes its partitions: both 8-bit copies of each
                                 projection, with their scales, become one vector; the 16-bit matrices they are made
                                 from stay in host memory
    GatheredFp8                  reads them from that vector, which is whole while its layer runs

The fit (`Engine.fit_frozen_base`) runs layer after layer on gathered weights, on the same rows everywhere; process 0's
result is everybody's. The 16-bit matrices are freed after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from luthier.fast.decoder.fp8_base import Fp8
from luthier.fast.decoder.linears import LinearView, NotPlain
from luthier.fast.decoder.spec import take_apart
from luthier.fast.kernels.fp8 import quantize_rows
from luthier.model.hosted import HostLinear, PackedStore
from luthier.model.packed import STORAGE
from luthier.runtime.errors import RecipeError

__all__ = ["GatheredFp8", "pack_fp8", "refuse_idle"]


def pack_fp8(
    layer: nn.Module, device: torch.device, *, storage: torch.dtype = STORAGE, rests_on: torch.device | None = None
) -> list[PackedStore]:  # fmt: skip
    """Replace what the engine multiplies in 8 bits; nothing in a layer that its layer function does not run.

    Args:
        layer: a decoder layer, in host memory or on the device.
        device: where matrices are rounded, one projection at a time, and their products are.
        storage: what the bytes are seen as.
        rests_on: where they wait for their part in the sharding (None: `device`).
    """
    try:
        parts = take_apart(layer)
    except NotPlain:
        return []
    names = {id(module): name for name, module in layer.named_modules()}
    stores = []
    for views in (parts.qkv, (parts.out,), parts.gate_up, (parts.down,)):
        if all(view.adapter is None for view in views):
            continue
        weight_nk = torch.cat([view.base.weight.detach().to(device) for view in views])
        store = PackedStore(
            [*quantize_rows(weight_nk), *quantize_rows(weight_nk.t().contiguous())], storage=storage
        )  # fmt: skip
        del weight_nk
        if rests_on is not None:
            store.to(rests_on)
        for view in views:
            layer.set_submodule(names[id(view.base)], HostLinear(view.base, device))
        first = layer.get_submodule(names[id(views[0].base)])
        cast(HostLinear, first).store = store
        stores.append(store)
    return stores


def refuse_idle(model: nn.Module, programs: Sequence[Any], *, why: str) -> None:
    """What was packed must be multiplied with: nothing else can run those layers once their matrices are freed.

    Raises:
        RecipeError: a packed layer that the engine's layer function does not run.
    """
    run = {id(view.base) for program in programs for projection in program.projections for view in projection.views}
    idle = [name for name, module in model.named_modules() if isinstance(module, HostLinear) and id(module) not in run]
    if idle:
        raise RecipeError(
            code="L190", message=f"an fp8 base in shards cannot run {idle[0]} and "
            f"{len(idle) - 1} more: {why}",
            hint="`model.quantization: none`, or `distributed.strategy: ddp`",
        )  # fmt: skip


class GatheredFp8(Fp8):
    """See the head of this file."""

    def __init__(self, views: Sequence[LinearView], dtype: torch.dtype) -> None:
        self.views, self.dtype = tuple(views), dtype
        self.store: PackedStore = views[0].base.store
        self.fitting = False
        self.kept_error: Tensor | None = None

    @property
    def rows_nk(self) -> Tensor:
        """(N, K) in 8 bits, for the forward pass."""
        return self.store.parts()[0]

    @property
    def rows_scale(self) -> Tensor:
        """(N, 1)."""
        return self.store.parts()[1]

    @property
    def columns_kn(self) -> Tensor:
        """(K, N) in 8 bits, for the gradient of the input."""
        return self.store.parts()[2]

    @property
    def columns_scale(self) -> Tensor:
        """(K, 1)."""
        return self.store.parts()[3]

    @property
    def bias_n(self) -> Tensor | None:  # type: ignore[override]
        """The biases as the modules hold them now."""
        biases = [view.base.bias for view in self.views]
        return None if biases[0] is None else torch.cat([bias.detach() for bias in biases])

    def take_rows(self, rows: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Process 0's rounding, written into the vector and into this process' part of it."""
        found = _of_process_0(rows, like=(self.rows_nk, self.rows_scale))
        if found is not None:
            self.store.replace([*found, self.columns_kn.clone(), self.columns_scale.clone()])
        return found

    def release(self) -> None:
        """Free the 16-bit matrices."""
        for view in self.views:
            view.base.release()


def _of_process_0(
    rows: tuple[Tensor, Tensor] | None, *, like: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """The same bits everywhere: those of process 0, or None where it has none."""
    distributed: Any = torch.distributed
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    there = torch.tensor([0 if rows is None else 1], dtype=torch.uint8, device=like[0].device)
    distributed.broadcast(there, src=0)
    if not int(there):
        return None
    found = [part.clone(memory_format=torch.contiguous_format) for part in (like if rows is None else rows)]
    for part in found:
        distributed.broadcast(part.view(torch.uint8), src=0)
    return found[0], found[1]
