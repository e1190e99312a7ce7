"""Frozen linear layers whose products another matrix takes over, of which each process holds a part.

HostLinear     in the place of `nn.Linear`: its 16-bit matrix waits in host memory for what is made from it
PackedStore    the matrices that are multiplied with instead, as one vector that FSDP2 or DeepSpeed can
               shard (`packed.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.model.packed import STORAGE, as_storage, bytes_of

__all__ = ["HostLinear", "PackedStore"]


class PackedStore(nn.Module):  # type: ignore[misc]
    """Some tensors as the bytes of one parameter."""

    def __init__(self, parts: Sequence[Tensor], *, storage: torch.dtype = STORAGE) -> None:
        super().__init__()
        self.like = tuple((part.shape, part.dtype) for part in parts)
        self.weight = nn.Parameter(as_storage(*parts, storage=storage), requires_grad=False)
        self._shard: list[Any] = []

    def remember_shard(self) -> None:
        """Call it when `fully_shard` has the parameter in shards: `replace` writes there too."""
        self._shard = [self.weight]

    def parts(self) -> list[Tensor]:
        """The tensors, as views of the parameter, which is whole while its layer runs."""
        sizes = [shape.numel() * dtype.itemsize for shape, dtype in self.like]
        raw = bytes_of(self.weight, *sizes)
        return [part.view(dtype).view(shape) for part, (shape, dtype) in zip(raw, self.like, strict=True)]

    def replace(self, parts: Sequence[Tensor]) -> None:
        """Other tensors of the same shapes and types, while the parameter is whole; here and in the shard."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        assert [(part.shape, part.dtype) for part in parts] == list(self.like)
        fresh = as_storage(*parts, storage=self.weight.dtype)
        with torch.no_grad():
            self.weight.data.copy_(fresh)
            _into_partition(self.weight, fresh)
            for shard in self._shard:
                shape, offset = compute_local_shape_and_global_offset(shard.shape, shard.device_mesh, shard.placements)
                shard.to_local().copy_(fresh[offset[0] : offset[0] + shape[0]])


def _into_partition(weight: Any, fresh: Tensor) -> None:
    """Under ZeRO-3 also where this process' part of the parameter lies; it is not written back when a layer is freed.

    The parts are of equal size, the last of them filled up (DeepSpeed's `partition_parameters.py: _partition_param`).
    """
    part = getattr(weight, "ds_tensor", None)
    if part is None:
        return
    start = torch.distributed.get_rank(weight.ds_process_group) * part.ds_numel
    mine = fresh[start : start + part.ds_numel]
    part[: len(mine)].copy_(mine)


class HostLinear(nn.Module):  # type: ignore[misc]
    """See the head of this file. `weight` is no parameter: it neither moves with the module nor is it sharded."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.device = device
        """Where its products are."""
        self.store: PackedStore | None = None
        """Of the first layer of those that are one product."""
        self.weight: Tensor = linear.weight.detach().to("cpu")

    def release(self) -> None:
        """Free the matrix: nothing is made from it any more."""
        self.weight = torch.empty_like(self.weight, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias with the 16-bit matrix, as long as it is there."""
        if self.weight.is_meta:
            raise RuntimeError("this layer's 16-bit matrix was freed: only the engine's layer function can run it")
        return nn.functional.linear(x, self.weight.to(x.device), self.bias)
