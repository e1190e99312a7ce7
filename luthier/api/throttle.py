"""Counting in time: requests of a key (a token bucket), wrong keys of an address (a sliding window).

All of it is the memory of one process and begins anew with it. The clock is monotonic seconds.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

__all__ = ["Buckets", "WrongKeys"]

MAX_TRACKED = 10_000
"""Keys and addresses that are remembered; the one that was quiet longest is forgotten first."""

EPSILON = 1e-9


class Buckets:
    """A token bucket for each key: `per_minute` requests in a burst, and as many again each minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, per_minute: int) -> int:
        """Count a request; returns seconds to wait (0: go on)."""
        now = self._clock()
        left, then = self._left.pop(key, (float(per_minute), now))
        left = min(float(per_minute), left + (now - then) * per_minute / 60.0)
        wait = 0 if left >= 1.0 - EPSILON else math.ceil((1.0 - left) * 60.0 / per_minute - EPSILON)
        self._left[key] = (left if wait else left - 1.0, now)
        while len(self._left) > MAX_TRACKED:
            self._left.popitem(last=False)
        return wait


class WrongKeys:
    """Wrong keys by address: after `allowed` of them within `window` seconds the address has to wait.

    A key that was right from the same address before goes on working: one who guesses does not lock out
    others behind the same address.
    """

    def __init__(self, *, allowed: int = 5, window: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.allowed, self.window, self._clock = allowed, window, clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait(self, address: str, key: str) -> int:
        """Seconds until this address may try a key that was not right before; 0: now."""
        times = self._wrong.get(address)
        if times is None or (address, _digest(key)) in self._right:
            return 0
        now = self._clock()
        while times and now - times[0] >= self.window:
            times.popleft()
        return 0 if len(times) < self.allowed else max(1, math.ceil(self.window - (now - times[0])))

    def wrong(self, address: str, key: str) -> None:
        """A key was wrong (or has become so)."""
        self._right.pop((address, _digest(key)), None)
        self._wrong.setdefault(address, deque(maxlen=self.allowed)).append(self._clock())
        self._wrong.move_to_end(address)
        while len(self._wrong) > MAX_TRACKED:
            self._wrong.popitem(last=False)

    def right(self, address: str, key: str) -> None:
        """A key was right."""
        self._right[address, _digest(key)] = None
        self._right.move_to_end((address, _digest(key)))
        while len(self._right) > MAX_TRACKED:
            self._right.popitem(last=False)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
