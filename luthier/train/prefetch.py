"""The batches of a step, ready when the step begins.

On CUDA a thread prepares those of the next step (documents laid end to end, in page-locked
memory) while the device works on this one, so that the device never waits for the host. What a
step gets is a function of its number and of the size of a micro-batch alone (`feed.py`), so the
thread changes no result; what it raises is raised where the step asks for its batches.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from luthier.train.feed import Feed, MicroBatch
from luthier.train.split import MicroBatchSize

__all__ = ["Batches"]


class Batches:
    """Micro-batches of this process, step by step. `close` it at the end."""

    def __init__(self, feed: Feed, *, ahead: bool | None = None) -> None:
        """`ahead`: prepare the next step in a thread. None: on CUDA."""
        self.feed = feed
        self._pins = feed.device.type == "cuda"
        ahead = self._pins if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="luthier-batches") if ahead else None
        self._next: tuple[int, Future[list[MicroBatch]]] | None = None

    @property
    def size(self) -> MicroBatchSize:
        """Of a micro-batch."""
        return self.feed.size

    def take(self, step: int) -> list[MicroBatch]:
        """Micro-batches of step `step` (from 0)."""
        if self._thread is None:
            return self._prepare(self.feed, step)
        ready = self._next[1] if self._next is not None and self._next[0] == step else self._start(step)
        self._next = None
        batches = ready.result()
        if step + 1 < self.feed.order.total_steps:
            self._next = (step + 1, self._start(step + 1))
        return batches

    def resize(self, size: MicroBatchSize) -> None:
        """Smaller micro-batches from now on; what was prepared in the old size is dropped."""
        self._drop()
        self.feed = replace(self.feed, size=size)

    def close(self) -> None:
        """End the thread. What it still prepares is thrown away, and with it what that raises."""
        self._drop()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _start(self, step: int) -> Future[list[MicroBatch]]:
        assert self._thread is not None
        return self._thread.submit(self._prepare, self.feed, step)

    def _prepare(self, feed: Feed, step: int) -> list[MicroBatch]:
        batches = feed.step(step)
        return [item.pin() for item in batches] if self._pins else batches

    def _drop(self) -> None:
        if self._next is not None:
            self._next[1].cancel()
            self._next = None
