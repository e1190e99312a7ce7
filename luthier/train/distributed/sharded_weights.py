"""Trained weights of which each process holds a shard (`fully_shard`): the optimizer works on the shards.

FSDP2 has averaged the gradients over the processes when a backward pass ends, of several copies (`mesh.py`) over all of
them. Each process updates its shard, by optimizers whose update of a number depends on that number alone
(`recipe/distributed_rules.py`); the norm is put together from the shards' of one copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.train.distributed.local import as_sharded, copies_of, local, my_rows, parts_of
from luthier.train.masters import Weights

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ShardedWeights"]


class ShardedWeights(Weights):
    """`Weights` over the shards of this process."""

    sharded = in_shards = norm_in_parts = True

    def __init__(self, model: nn.Module) -> None:
        self.whole: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        """The sharded parameters themselves (DTensor), by name."""
        shards = {name: nn.Parameter(local(parameter.detach())) for name, parameter in self.whole.items()}
        super().__init__(model, shards)
        self.copies = copies_of(next(iter(self.whole.values()))) if self.whole else 1

    def begin(self, *, passes: int, processes: int) -> None:
        """FSDP2 has added up the processes: a single pass' gradient is the sum."""
        super().begin(passes=passes, processes=1)

    def collect(self) -> None:
        """The gradients of the pass, from the parameters to the shards."""
        for name, parameter in self.whole.items():
            if parameter.grad is None:
                continue
            fresh, live = local(parameter.grad), self.live[name]
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

    def as_whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Shards by parameter name as the sharded tensors that all processes hold together (DTensor)."""
        return {name: as_sharded(shard.detach(), self.whole[name]) for name, shard in tensors.items()}

    def in_8_bits(self, *, smallest: int, block: int) -> list[str]:
        """Names of tensors of `smallest` elements or more whose every shard is whole blocks of `block` elements."""
        large = {name: like for name, like in self.whole.items() if like.numel() >= smallest}
        return [name for name, like in large.items() if _row_group(like, block) is not None]

    def blocks_as_whole(self, name: str, mine: Tensor, *, block: int) -> Any:
        """A number for each block of this process' shard, as the sharded tensor of all blocks (DTensor, 2-D)."""
        from torch.distributed.tensor import DTensor

        like = self.whole[name]
        rows, group = like.shape[0], _row_group(like, block)
        assert group is not None
        shape = (rows // group, like.numel() // rows * group // block)
        return DTensor.from_local(
            mine.view(-1, shape[1]), like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape),
            stride=(shape[1], 1),
        )  # fmt: skip

    def shard_of(self, name: str, whole: Tensor) -> Tensor:
        """This process' part of a whole tensor that has the shape of the parameter `name`."""
        first, last = my_rows(self.whole[name])
        return whole[first:last]


def _row_group(like: Any, block: int) -> int | None:
    """The fewest rows that are whole blocks, if every shard consists of such groups; shards are cut by rows."""
    rows = like.shape[0]
    group = block // math.gcd(block, like.numel() // rows)
    a_shard = -(-rows // parts_of(like))
    return None if rows % group or a_shard % group else group
