"""Who waits, who may enter: first come, first served, within rows and memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.serve.engine.request import Request

__all__ = ["EngineLimits", "QueueFull", "Waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Bounds of one engine."""

    max_batch_size: int = 32
    """Most rows decoded at once."""
    max_queue: int = 256
    """Most requests that wait for a row."""
    prefill_tokens: int = 256
    """Most prompt tokens read between two steps of decoding."""
    prefix_tokens: int = 0
    """Most tokens of finished answers whose keys and values are kept for prompts that begin alike."""
    cache_tokens: int = 1 << 62
    """Most tokens in the cache: rows times the widest of them; over pages, the sum of them."""


class QueueFull(Exception):
    """No room to wait; try again after so many seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"queue is full, retry after {retry_after:.0f} s")
        self.retry_after = retry_after


class Waiting:
    """Requests that have no row yet."""

    def __init__(self, limits: EngineLimits, page_tokens: int | None = None) -> None:
        self.limits, self._page = limits, page_tokens
        self._queue: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._queue.append(request)

    def admit(self, running: Sequence[Request]) -> list[Request]:
        """Take out the requests that may enter beside those running.

        The first in line is never overtaken: a wide request that waits for memory is not starved by narrow ones.
        """
        entering: list[Request] = []
        inside = list(running)
        while self._queue and len(inside) < self.limits.max_batch_size:
            inside.append(self._queue[0])
            if len(inside) > 1 and self._tokens(inside) > self.limits.cache_tokens:
                break
            entering.append(self._queue.popleft())
        return entering

    def _tokens(self, requests: Sequence[Request]) -> int:
        """Tokens of the cache that these may need together."""
        if self._page is None:
            return len(requests) * max(request.width for request in requests)
        return sum(-(-request.width // self._page) * self._page for request in requests)

    def remove(self, unwanted: Sequence[Request]) -> None:
        """Forget requests that were given up."""
        gone = set(unwanted)
        self._queue = deque(request for request in self._queue if request not in gone)

    def all(self) -> list[Request]:
        """Everyone in line."""
        return list(self._queue)
