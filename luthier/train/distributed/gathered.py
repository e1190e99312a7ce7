"""The weights of a model in shards, FSDP2's or DeepSpeed's, for whoever writes them: process 0 asks, and all put the
tensors together.

    process 0                                    the others
    source.take(names)                           source.answer():
      asks for names                               take part in each tensor that is asked for,
      puts each tensor together                    until process 0 says that it is done
    source.close(), whatever happened

A tensor is whole on the device for a moment and then in the host memory of process 0 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.train.distributed.local import whole
from luthier.train.processes import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Gathered", "write_gathered"]


class Gathered:
    """See above. Made by all processes of the same model."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        self._accelerator = accelerator
        self._tensors: dict[str, Any] = dict(model.state_dict(keep_vars=True))

    def outline(self) -> Mapping[str, Any]:
        """Every tensor by its name: shape and type of the whole one; shared ones are one object."""
        outlines = {id(tensor): _outline(tensor) for tensor in self._tensors.values()}
        return {name: outlines[id(tensor)] for name, tensor in self._tensors.items()}

    def take(self, names: Sequence[str]) -> dict[str, Tensor]:
        """In process 0: these tensors, whole and in host memory; shared ones share it."""
        self._tell(list(names))
        held: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name in names:
            tensor = self._tensors[name]
            if id(tensor) not in held:
                held[id(tensor)] = _on_host(tensor)
            found[name] = held[id(tensor)]
        return found

    def answer(self) -> None:
        """In the others: take part until process 0 is done."""
        while (names := self._tell(None)) is not None:
            for tensor in {id(self._tensors[name]): self._tensors[name] for name in names}.values():
                _on_host(tensor, keep=False)

    def close(self) -> None:
        """In process 0: nothing more is asked for."""
        self._tell(None)

    def _tell(self, names: list[str] | None) -> list[str] | None:
        from accelerate.utils import broadcast_object_list

        shared: list[Any] = [names]
        broadcast_object_list(shared, from_process=0)
        told: list[str] | None = shared[0]
        return told


def _outline(tensor: Any) -> Any:
    """Shape and type of the whole tensor; DeepSpeed leaves an empty one in its place."""
    return torch.empty(tensor.ds_shape, dtype=tensor.dtype, device="meta") if hasattr(tensor, "ds_id") else tensor


def _on_host(tensor: Any, *, keep: bool = True) -> Tensor:
    """The whole tensor in host memory, if it is to be kept; called by all processes."""
    if not hasattr(tensor, "ds_id"):
        found = whole(tensor)
        return found.to("cpu") if keep else found
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        found = tensor.detach()
        return found.to("cpu", copy=True) if keep else found


@torch.no_grad()  # type: ignore[untyped-decorator]
def write_gathered(accelerator: Accelerator, model: nn.Module, write: Callable[[Gathered], None]) -> None:
    """`write` in process 0, with the weights of all; its failure ends all of them. Called by all processes.

    Raises:
        LuthierError: in process 0 what `write` raised, elsewhere `RunFailed` with its text.
    """
    source = Gathered(accelerator, model)

    def as_main() -> None:
        try:
            write(source)
        finally:
            source.close()

    if not accelerator.is_main_process:
        source.answer()
    on_main(accelerator, as_main)
