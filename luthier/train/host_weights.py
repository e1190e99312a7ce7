"""Weights on the device, and what the optimizer works on in host memory (`distributed.offload: optimizer`).

    device          the weight (2 bytes a number in bf16), its gradient (2, or 4 with several passes a step)
    host memory     fp32 master and the optimizer's state (12 bytes a number with AdamW)

AdamW on a GPU is an update there: masters and states go up in pieces and come back (`round_trip.py`), with the numbers
of a run without offload. Other optimizers update on the CPU, up to its rounding, in groups of BUCKET_BYTES: gradients
of the next group come to the host while the CPU updates this one, and the rounded masters go back.

`HostWeights` are whole (one process); of shards see `distributed/host_shards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from luthier.train import foreach
from luthier.train.master_adamw import MasterAdamW
from luthier.train.masters import BUCKET_BYTES, Weights

__all__ = ["HostMasters", "HostWeights"]

Pair = tuple[nn.Parameter, Tensor]


class HostMasters(Weights):
    """`Weights` whose masters are in host memory, also those of fp32 weights."""

    def __init__(self, model: nn.Module, live: Mapping[str, nn.Parameter] | None = None) -> None:
        self._summed: dict[str, Tensor] = {}
        """Gradient of each weight, on the device."""
        super().__init__(model, live)

    def master_of(self, parameter: nn.Parameter) -> Tensor:
        """A copy in host memory; fp64 stays fp64."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return parameter.detach().to("cpu", wide, copy=True).contiguous()

    def collect(self) -> None:
        """The gradients of the pass, kept as they are if it is the only one, else summed in fp32 on the device."""
        for name, gradient in self._fresh():
            self._add(name, gradient)

    def _fresh(self) -> Iterator[tuple[str, Tensor]]:
        """Gradients of the last pass; each is the weight's no more."""
        for name, parameter in self.live.items():
            if parameter.grad is not None:
                gradient, parameter.grad = parameter.grad, None
                yield name, gradient

    def _add(self, name: str, gradient: Tensor) -> None:
        if self._keeps:
            self._summed[name] = gradient
        elif name in self._summed:
            self._summed[name].add_(gradient)
        else:
            self._summed[name] = gradient.to(self.tensors[name].dtype, copy=True)

    def _pairs(self) -> list[Pair]:
        return [(tensor, self._summed[name]) for name, tensor in self.tensors.items() if name in self._summed]

    def apply(self, optimizer: torch.optim.Optimizer, *, scale: float | Tensor) -> None:
        """One step of the optimizer with the gradients times `scale`; then no gradient is left."""
        if isinstance(optimizer, MasterAdamW):
            super().apply(optimizer, scale=scale)
            return
        assert isinstance(scale, float), "the CPU waits for the scale"
        live = {tensor: self.live[name] for name, tensor in self.tensors.items()}
        buckets = list(foreach.buckets(self._pairs(), BUCKET_BYTES))
        coming = _to_host(buckets[0]) if buckets else ([], None)
        for place, bucket in enumerate(buckets):
            gradients, arrived = coming
            if place + 1 < len(buckets):
                coming = _to_host(buckets[place + 1])
            if arrived is not None:
                arrived.synchronize()
            masters = [master for master, _ in bucket]
            wide = [gradient.to(master.dtype) for master, gradient in zip(masters, gradients, strict=True)]
            self._step(list(zip(masters, wide, strict=True)), optimizer, scale)
            _to_device(masters, [live[master] for master in masters])
        self.zero_grad()

    def zero_grad(self) -> None:
        """Free all gradients."""
        super().zero_grad()
        self._summed.clear()

    def _publish(self, names: list[str]) -> None:
        _to_device([self.tensors[name] for name in names], [self.live[name] for name in names])


class HostWeights(HostMasters):
    """Of whole weights, in one process."""

    def _moves_to(self, name: str, master: nn.Parameter) -> Callable[[Tensor], None]:
        """A hook that adds a fresh gradient of several to their sum: never two copies of all of them."""

        def move(parameter: Tensor) -> None:
            if not self._keeps and parameter.grad is not None:
                self._add(name, parameter.grad)
                parameter.grad = None

        return move


def _to_host(bucket: Sequence[Pair]) -> tuple[list[Tensor], torch.cuda.Event | None]:
    """The gradients of a group on their way to host memory, and when they are there."""
    if bucket[0][1].device.type != "cuda":  # other devices have no event to wait for
        return [gradient.to("cpu", copy=True) for _, gradient in bucket], None
    copies = [gradient.to("cpu", non_blocking=True, copy=True) for _, gradient in bucket]
    event = torch.cuda.Event()
    event.record()
    return copies, event


@torch.no_grad()  # type: ignore[untyped-decorator]
def _to_device(masters: Sequence[Tensor], live: Sequence[Tensor]) -> None:
    """Masters rounded into the weights; nothing waits for the copies, which the device orders before its next pass."""
    for master, weight in zip(masters, live, strict=True):
        if weight.device.type == "cuda":
            staged = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=True).copy_(master)
            weight.copy_(staged, non_blocking=True)
        else:
            weight.copy_(master)
