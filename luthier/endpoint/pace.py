"""No more requests, and no more tokens, in any minute than a server allows.

A sliding window: whatever 60 seconds one looks at, at most `requests_per_minute` attempts were sent in them, with at
most `tokens_per_minute` tokens. Tokens of a request are first taken as (bytes of its text / 4 + `max_tokens`) and
corrected to what the server reports. A request that is larger than the limit by itself is sent when nothing else
counts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

__all__ = ["Pace", "Sent", "tokens_at_most"]

_WINDOW_SECONDS = 60.0
_BYTES_A_TOKEN = 4
_POLL = 0.1


@dataclass(slots=True)
class Sent:
    """One attempt."""

    at: float
    tokens: float


def tokens_at_most(request_bytes: int, max_tokens: int) -> float:
    """Tokens that a request is taken for before its answer is there."""
    return request_bytes / _BYTES_A_TOKEN + max_tokens


class Pace:
    """The window of one client. Safe for threads.

    Args:
        requests: Attempts a window; None: any number.
        tokens: Tokens a window; None: any number.
        window: Its length, in seconds.
    """

    def __init__(self, requests: float | None, tokens: float | None, *, window: float = _WINDOW_SECONDS) -> None:
        self.requests, self.tokens, self.window = requests, tokens, window
        self._lock = threading.Lock()
        self._sent: deque[Sent] = deque()

    def wait(self, tokens: float, *stops: threading.Event) -> Sent | None:
        """Wait until an attempt of so many tokens may be sent; None when one of `stops` was set before."""
        while not any(stop.is_set() for stop in stops):
            with self._lock:
                now = time.monotonic()
                left = self._left(now, tokens)
                if left <= 0:
                    entry = Sent(now, tokens)
                    self._sent.append(entry)
                    return entry
            pause = min(left, _POLL)
            if stops:
                stops[0].wait(pause)
            else:
                time.sleep(pause)
        return None

    def correct(self, entry: Sent, tokens: float) -> None:
        """What an attempt really took."""
        with self._lock:
            entry.tokens = tokens

    def _left(self, now: float, tokens: float) -> float:
        """Seconds until the oldest entries that stand in the way have left the window."""
        while self._sent and self._sent[0].at <= now - self.window:
            self._sent.popleft()
        if not self._sent:
            return 0.0
        count, total = len(self._sent), sum(entry.tokens for entry in self._sent)
        for entry in [None, *self._sent]:
            if entry is not None:
                count, total = count - 1, total - entry.tokens
            fits = self.requests is None or count + 1 <= self.requests
            if fits and (self.tokens is None or total + tokens <= self.tokens or count == 0):
                return 0.0 if entry is None else entry.at + self.window - now
        return self._sent[-1].at + self.window - now
