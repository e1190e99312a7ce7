"""Trained weights of which each process holds a shard (`fully_shard`): the optimizer works on the shards.

FSDP2 has averaged the gradients over the processes when a backward pass ends. Each process updates its shard, by
optimizers whose update of a number depends on that number alone (`recipe/distributed_rules.py`); the norm is put
together from the shards'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.train.distributed.fsdp import gather_whole
from luthier.train.masters import Weights

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ShardedWeights"]


class ShardedWeights(Weights):
    """`Weights` over the shards of this process."""

    sharded = norm_in_parts = True

    def __init__(self, model: nn.Module) -> None:
        self.whole: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        """The sharded parameters themselves (DTensor), by name."""
        shards = {name: nn.Parameter(_local(parameter.detach())) for name, parameter in self.whole.items()}
        super().__init__(model, shards)

    def begin(self, *, passes: int, processes: int) -> None:
        """FSDP2 has added up the processes: a single pass' gradient is the sum."""
        super().begin(passes=passes, processes=1)

    def collect(self) -> None:
        """The gradients of the pass, from the parameters to the shards."""
        for name, parameter in self.whole.items():
            if parameter.grad is None:
                continue
            fresh, live = _local(parameter.grad), self.live[name]
            live.grad = fresh if live.grad is None else live.grad.add_(fresh)
            parameter.grad = None
        super().collect()

    def average_over_processes(self, accelerator: Accelerator) -> None:
        """Done by FSDP2 in the backward pass."""

    def zero_grad(self) -> None:
        """Free all gradients."""
        super().zero_grad()
        for parameter in self.whole.values():
            parameter.grad = None

    def result(self, model: nn.Module, *, keep: bool) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """See `Weights.result`."""
        return {}, gather_whole(model, keep=keep)

    def as_whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Shards by parameter name as the sharded tensors that all processes hold together (DTensor)."""
        from torch.distributed.tensor import DTensor

        found = {}
        for name, shard in tensors.items():
            like = self.whole[name]
            found[name] = DTensor.from_local(
                shard.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape,
                stride=like.stride(),
            )  # fmt: skip
        return found

    def shard_of(self, name: str, whole: Tensor) -> Tensor:
        """This process' part of a whole tensor that has the shape of the parameter `name`."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        like = self.whole[name]
        shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
        part = whole
        for axis, (size, start) in enumerate(zip(shape, offset, strict=True)):
            part = part.narrow(axis, min(start, whole.shape[axis] - size), size)
        return part


def _local(tensor: Any) -> Tensor:
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local
