"""What this process is doing, for whoever has to say why a run stands still.

`mark` names the operation that begins; it costs one assignment. Several processes of a run each write the newest one
into a file of their own (`train/distributed/watch.py`); without that, nothing is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Operation", "current", "mark"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What a process has begun."""

    name: str
    step: int | None
    """Optimizer step, from 1; None outside of training."""
    exchange: bool
    """It waits for other processes."""
    watched: bool
    """It is over in seconds or minutes; other work (reading data, scoring) may take as long as it takes."""
    count: int
    """How many there were before it."""
    since: float
    """`time.monotonic` of its begin."""


_current = Operation("starting", None, exchange=False, watched=False, count=0, since=time.monotonic())


def mark(name: str, *, step: int | None = None, exchange: bool = False, watched: bool = True) -> None:
    """The operation `name` begins now, and with it ends the one before.

    Args:
        name: In plain words: it is what an error says.
        step: Optimizer step, from 0.
        exchange: It waits for other processes, so a process in it is not the one that hangs.
        watched: False for work without a bound on its time.
    """
    global _current
    shown = None if step is None else step + 1
    _current = Operation(name, shown, exchange, watched, _current.count + 1, time.monotonic())


def current() -> Operation:
    """The operation that began last."""
    return _current
