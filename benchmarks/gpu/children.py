"""Processes that leave nothing behind. Only the standard library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from pathlib import Path

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_SET_CHILD_SUBREAPER, _SET_PARENT_DEATH_SIGNAL = 36, 1  # prctl(2)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that `own_children` finds them."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: SIGTERM, five seconds, SIGKILL."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def own_children() -> list[int]:
    """Processes whose parent is this one: orphans come here, because this process is their reaper."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
