"""When to try again, and how long to wait."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Mapping

__all__ = ["Gate", "asked_wait", "backoff", "worth_retrying"]

_POLL = 0.1
"""Seconds between two looks at whether waiting still makes sense."""
_AGAIN = {408, 409, 425, 429}
# Not a matter of time: more attempts change nothing.
_HOPELESS = {"insufficient_quota", "billing_hard_limit_reached", "account_deactivated"}


def worth_retrying(status: int, code: str | None) -> bool:
    """Whether another attempt of the same request may succeed. `code`: the server's own word for the error."""
    return (status in _AGAIN or status >= 500) and code not in _HOPELESS


def backoff(attempt: int, *, first: float, most: float) -> float:
    """Seconds before retry `attempt` (from 0): first x 2^attempt, at most `most`, times a number in [0.5, 1).

    Half of it is jitter, so that clients that failed together do not come back together.
    """
    return float(min(most, first * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0))


def asked_wait(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or date (RFC 9110, 10.2.3).

    None without such a header, or with one that cannot be read. A time that has passed is 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return max(0.0, seconds)
    if text is None:
        return None
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and value == value and abs(value) != float("inf") else None


class Gate:
    """One pause for all threads of a client: when a server says "too many", all of them wait, not one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opens_at = 0.0
        self.closed_for_good = threading.Event()
        """Set when the client gives up: nobody waits any longer."""

    def close_for(self, seconds: float) -> None:
        """Nothing is sent for so long."""
        with self._lock:
            self._opens_at = max(self._opens_at, time.monotonic() + seconds)

    def wait(self, given_up: threading.Event, *, at_least: float = 0.0) -> bool:
        """Wait until the gate is open, and so long; False when it is closed for good or the caller gave up."""
        until = time.monotonic() + at_least
        while not (self.closed_for_good.is_set() or given_up.is_set()):
            with self._lock:
                left = max(self._opens_at, until) - time.monotonic()
            if left <= 0:
                return True
            given_up.wait(min(left, _POLL))
        return False
