"""Shards on the device, and what the optimizer works on in host memory (`distributed.offload: optimizer`).

As `host_weights.py`, of this process' shards. With `offload: all` (torch's CPUOffloadPolicy) the shards themselves are
in host memory, and `ShardedWeights` over them is all it takes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from luthier.train.distributed.local import local
from luthier.train.distributed.sharded_weights import ShardedWeights
from luthier.train.host_weights import HostMasters

__all__ = ["HostShards"]


class HostShards(HostMasters, ShardedWeights):
    """`ShardedWeights` whose masters are in host memory."""

    def __init__(self, model: nn.Module) -> None:
        self._summed: dict[str, Tensor] = {}
        ShardedWeights.__init__(self, model)

    def _fresh(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.whole.items():
            if parameter.grad is not None:
                gradient, parameter.grad = local(parameter.grad), None
                yield name, gradient
