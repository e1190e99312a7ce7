"""Limits in time, kept in memory: wrong keys of an address, requests of a key. Safe for several threads."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from luthier.jobs.errors import TooMany

__all__ = ["RequestRate", "WrongKeys", "network_of"]

_MOST_NAMES = 10_000
"""Remembered at once; the one heard of longest ago is forgotten first, so that memory stays bounded."""


class _Windows:
    """Times of what happened to each name within the last `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds, self.clock = seconds, clock
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, name: str, most: int, *, add: bool) -> float:
        """Seconds until fewer than `most` lie in the window; 0 if that is so now. `add`: count one more, if it is."""
        now = self.clock()
        with self._lock:
            times = self._times.setdefault(name, deque())
            self._times.move_to_end(name)
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if len(times) >= most:
                return times[-most] + self.seconds - now
            if add:
                times.append(now)
            while len(self._times) > _MOST_NAMES:
                self._times.popitem(last=False)
            return 0.0


class WrongKeys:
    """Wrong API keys of an address: the sixth within a minute, and those after it, are told to wait.

    A right key always passes: keys have 256 random bits, and users behind one address must not lock each other out.
    """

    def __init__(self, most: int = 6, seconds: float = 60.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._windows = _Windows(seconds, clock)

    def wrong(self, address: str) -> None:
        """Count a wrong key.

        Raises:
            TooMany: J119; `retry_after` says when the next one is looked at.
        """
        # The last of them is refused itself, so one less may lie in the window before it.
        network = network_of(address)
        self._windows.wait(network, self.most, add=True)
        wait = self._windows.wait(network, self.most, add=False)
        if wait > 0:
            message = f"{self.most} wrong API keys from this address within {self._windows.seconds:g} seconds"
            raise TooMany(code="J119", message=message, retry_after=math.ceil(wait))

    def waits(self, address: str) -> float:
        """Seconds until wrong keys of an address are answered with 401 again; 0: now."""
        return self._windows.wait(network_of(address), self.most, add=False)


class RequestRate:
    """Requests of a key within the last minute."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._windows = _Windows(60.0, clock)

    def take(self, key_id: str, per_minute: int | None) -> None:
        """Count a request.

        Raises:
            TooMany: J118; `retry_after` in seconds.
        """
        if per_minute is None:
            return
        wait = self._windows.wait(key_id, per_minute, add=True)
        if wait > 0:
            message = f"this key may send {per_minute} requests a minute"
            raise TooMany(code="J118", message=message, retry_after=math.ceil(wait))


def network_of(address: str) -> str:
    """Who is counted as one: an IPv4 address, the /64 of an IPv6 address (one customer has all of it)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0].strip("[]"))
    except ValueError:
        return address[:100]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
