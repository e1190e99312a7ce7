"""Ctrl-C and SIGTERM ask for a stop; a second one stops at once.

The first signal only raises a flag: the loop reads it between micro-batches and between steps,
saves, and ends with `Interrupted`. What a second signal leaves is what a crash leaves: the last
complete checkpoint, and a temporary folder that the next run removes.

Of several processes each may get a signal twice that was meant once: a cluster sends it to all of a job, and the
launcher passes its own on. So there only one that comes after the launcher's patience stops at once; or any, as long
as there is nothing to save (`begun`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from luthier.runtime.console import console, note
from luthier.runtime.env import read_env

__all__ = ["Stop", "stop_on_signals"]

EXIT_INTERRUPTED = 130
AGENT_SECONDS = 30.0
"""After which torch's agent kills processes that it has told to stop."""


class Stop:
    """A flag that a signal raises."""

    def __init__(self, said: str = "saving a checkpoint, then stopping") -> None:
        self.signal: signal.Signals | None = None
        self.said = said
        self.begun = False
        """Processes of a run take steps together: what is asked of one is done by all, after a step."""
        self._again = 0.0 if read_env().world_size == 1 else AGENT_SECONDS
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """A signal has come."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first raises the flag, the second ends the process."""
        if self._again and not self.begun:
            os._exit(EXIT_INTERRUPTED)
        if self.requested:
            if time.monotonic() - self._since >= self._again:
                os._exit(EXIT_INTERRUPTED)
            return
        self.signal, self._since = signal.Signals(number), time.monotonic()
        note(f"{self.signal.name}: {self.said}{'' if self._again else ' (once more to stop at once)'}")


@contextmanager
def stop_on_signals(said: str = "saving a checkpoint, then stopping") -> Iterator[Stop]:
    """Yield the flag; the handlers found are put back at the end. `said` is told when the first signal comes.

    Outside the main thread Python allows no handlers: then the flag stays down.
    """
    stop = Stop(said)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # What a bar imports when it is first drawn: a handler that came in the middle of that could not print.
    console().render_str("", emoji=True)
    old: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, stop.handle)
        yield stop
    finally:
        for number, handler in old.items():
            # A handler set from C comes back as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
