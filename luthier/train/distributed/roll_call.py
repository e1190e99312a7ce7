"""A pass under FSDP2 that one process cannot finish: all leave it at the same place, and can begin it again.

Inside a pass processes meet in each layer's exchange, and one that has run out of memory does not come: the others
would wait for ever. So before each exchange all answer a roll call, one number through host memory (gloo):

    process 0   call  gather  layer 1   call  gather  layer 2 ...    call -> one is missing: leave
    process 1   call  gather  layer 1   call  gather  out of memory  call ("not me")       : leave

An exchange is begun by all or by none, so nothing is left waiting on the devices. After the pass one more call tells
whether all finished it. What FSDP2 had begun is put back by torch's `reset_iter_state`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from luthier.runtime.env import read_env

__all__ = ["GivenUp", "RollCall"]

SPARE_SECONDS = 120.0
"""How much longer than the watch of hanging processes a call waits (`group.py`)."""


class GivenUp(Exception):
    """Another process could not finish the pass; this one has left it, too."""


class RollCall:
    """The calls of one model under FSDP2. Made by all processes together."""

    def __init__(self, root: nn.Module) -> None:
        """Call before each exchange of the groups in `root` from now on; nothing is asked outside `calling`."""
        from torch.distributed.fsdp import FSDPModule

        self._root = root
        self._calling = False
        env = read_env()
        limit = timedelta(seconds=env.hang_seconds + SPARE_SECONDS)
        self._group = torch.distributed.new_group(backend="gloo", timeout=limit)
        one_machine = env.local_world_size == torch.distributed.get_world_size()
        cheap = env.roll_call or next(root.parameters()).device.type == "cpu"
        self.in_every_step = one_machine and cheap
        """Else in the trial of the largest micro-batch alone: over a network a call takes too long to ask for one
        before each exchange, and what it costs beside a GPU was not measured (`LUTHIER_ROLL_CALL=1` asks for it)."""
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_Gather(self))
                module.set_custom_reduce_scatter(_Reduce(self))

    @staticmethod
    def possible(root: nn.Module) -> bool:
        """Whether this torch can begin a pass again that was left (from 2.13)."""
        return hasattr(root, "reset_iter_state") and hasattr(torch.distributed, "all_gather_single")

    @contextmanager
    def calling(self, wanted: bool) -> Iterator[None]:
        """A pass, with calls if `wanted`.

        Raises:
            GivenUp: another process could not finish it.
        """
        if not wanted:
            yield
            return
        self._calling = True
        try:
            yield
            self.call()
        finally:
            self._calling = False

    def call(self, *, missing: bool = False) -> None:
        """Answer; inside `calling` only. `missing`: this process cannot go on.

        Raises:
            GivenUp: some other process cannot.
        """
        if not self._calling and not missing:
            return
        answers = torch.tensor([int(missing)])
        torch.distributed.all_reduce(answers, group=self._group)
        if int(answers) and not missing:
            raise GivenUp

    def leave(self, *, missing: bool) -> None:
        """After a pass that was not finished: tell the others if it was because of this process, and be as before it.

        Call it outside of the `except` clause, whose exception keeps the pass alive.
        """
        if missing:
            self.call(missing=True)
        for parameter in self._root.parameters():
            parameter.grad = None  # of whole weights: torch puts them away with their gradients
        self._root.reset_iter_state()
        for parameter in self._root.parameters():
            parameter.grad = None


class _Exchange:
    def __init__(self, roll: RollCall) -> None:
        self._roll = roll

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Exchange):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """torch's, once all have answered."""
        self._roll.call()
        return torch.distributed.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


class _Reduce(_Exchange):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        """torch's, once all have answered."""
        self._roll.call()
        return torch.distributed.reduce_scatter_single(
            output=output_tensor, input=input_tensor, group=group, op=op, async_op=async_op
        )
