"""A device without memory for micro-batches above a number of tokens: the engine's module raises what torch would.

It fails in the forward pass, or in the backward pass after gradients of some layers are there.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from luthier.fast import engine


class Memory:
    """What happened on the device."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        """Tokens of each micro-batch that was tried, in order."""
        self.failures = 0
        self.leaks = 0
        """Tensors of a failed pass that were alive when the next one began."""
        self._of_failure: list[weakref.ref[Any]] = []

    def enter(self, tokens: int) -> None:
        self.seen.append(tokens)
        self.leaks += sum(reference() is not None for reference in self._of_failure)
        self._of_failure.clear()

    def fail(self, tensor: torch.Tensor) -> None:
        self.failures += 1
        self._of_failure.append(weakref.ref(tensor))
        # An activation that only a reference cycle holds, as a traceback or a frame would.
        held = torch.zeros(4)
        cycle: list[Any] = [held]
        cycle.append(cycle)
        self._of_failure.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@contextmanager
def short_of_memory(limit: int, *, backward: bool = False, after: int = 0, rank: int | None = None) -> Iterator[Memory]:
    """Micro-batches of more than `limit` tokens fail once `after` have been tried; only on `rank`, if given."""
    memory = Memory()
    real = engine.LossModule.forward
    mine = rank is None or not torch.distributed.is_initialized() or torch.distributed.get_rank() == rank

    def forward(self: Any, batch: Any, *more: Any, **named: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not torch.is_grad_enabled():
            return real(self, batch, *more, **named)
        memory.enter(batch.tokens)
        short = mine and batch.tokens > limit and len(memory.seen) > after
        loss, sums = real(self, batch, *more, **named)
        if short and not backward:
            memory.fail(loss)
        if short:
            # The embeddings get their gradient last: most gradients are there by then.
            first = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
            handle = first.register_hook(lambda _: (handle.remove(), memory.fail(loss)))
        return loss, sums

    engine.LossModule.forward = forward  # type: ignore[method-assign]
    gc.disable()  # nothing is freed by chance
    try:
        yield memory
    finally:
        gc.enable()
        engine.LossModule.forward = real  # type: ignore[method-assign]
