"""Steps of decoding recorded as CUDA graphs, one per number of rows, replayed with rows that fill up.

A step of a small model is hundreds of launches, which take the host longer than the device; a graph is one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.runtime.console import note

__all__ = ["Graphs", "recorded_size"]

# Recording costs about four plain steps, so a kind of step is recorded when it comes again.
RECORD_AT = 3


def recorded_size(rows: int) -> int:
    """Rows of the graph that takes so many: 1, 2, 4, 8, then multiples of 8, of 16 above 32, of 32 above 128."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 32 else 16 if rows <= 128 else 32
    return -(-rows // step) * step


@dataclass(slots=True, eq=False)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    slots: Tensor
    tokens: Tensor
    logits: Tensor
    sent: list[int]


class Graphs:
    """What was recorded so far.

    Args:
        step: (R,) slots to tokens and logits; works on tensors that stay where they are.
        nobody: The slot that fills up.
        device: Of the model.
    """

    def __init__(self, step: Callable[[Tensor], tuple[Tensor, Tensor]], nobody: int, device: torch.device) -> None:
        self._run, self._nobody, self._device = step, nobody, device
        self._recorded: dict[tuple[Hashable, int], _Recorded] = {}
        self._asked: Counter[tuple[Hashable, int]] = Counter()
        self._memory: object | None = None
        self.refused: str | None = None
        """Why steps are not recorded, when that failed once."""
        self.seconds = 0.0
        """Spent on recording."""

    def __len__(self) -> int:
        return len(self._recorded)

    def clear(self) -> None:
        """Forget all; their memory is free again."""
        self._recorded.clear()
        self._asked.clear()
        self._memory = None

    def forget(self, variant: Hashable) -> None:
        """Forget the graphs of a variant that will not come again."""
        for key in [key for key in self._recorded if key[0] == variant]:
            del self._recorded[key]

    def replay(self, slots: Sequence[int], variant: Hashable) -> tuple[Tensor, Tensor] | None:
        """Tokens (R,) and logits (R, V), or None: do it without a graph."""
        key = (variant, recorded_size(len(slots)))
        found = self._recorded.get(key)
        if found is None:
            self._asked[key] += 1
            if self.refused is not None or self._asked[key] < RECORD_AT:
                return None
            found = self._record(key[1])
            if found is None:
                return None
            self._recorded[key] = found
        wanted = [*slots, *[self._nobody] * (key[1] - len(slots))]
        if wanted != found.sent:
            found.slots.copy_(torch.tensor(wanted).pin_memory(), non_blocking=True)
            found.sent = wanted
        found.graph.replay()
        return found.tokens[: len(slots)], found.logits[: len(slots)]

    def _record(self, rows: int) -> _Recorded | None:
        started = time.monotonic()
        sent = [self._nobody] * rows
        slots = torch.tensor(sent, device=self._device)
        self._run(slots)  # compiles kernels, makes handles
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                tokens, logits = self._run(slots)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.refused = str(error).splitlines()[0]
            note(f"steps of decoding are not recorded as CUDA graphs, so they take longer: {self.refused}")
            return None
        self._memory = graph.pool()
        self.seconds += time.monotonic() - started
        return _Recorded(graph, slots, tokens, logits, sent)
