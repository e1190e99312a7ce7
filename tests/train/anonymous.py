"""The most memory of a process that is not pages of a file (`RssAnon`), watched from outside by another process."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WATCH = """
import sys, time, pathlib
status, told = pathlib.Path(f"/proc/{sys.argv[1]}/status"), pathlib.Path(sys.argv[2])
most = 0
while not told.exists():
    now = int(status.read_text().split("RssAnon:")[1].split()[0]) << 10
    most = max(most, now)
    time.sleep(0.0005)
told.write_text(str(most))
"""


def anonymous() -> int:
    """Bytes of this process now. The kernel has no mark of their highest, and `VmHWM` counts mapped files."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10


@contextmanager
def watched(folder: Path, found: dict[str, int], name: str) -> Iterator[None]:
    """`found[name]`: bytes above what was there at the beginning, at their highest."""
    told = folder / f"told-{os.getpid()}"
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no room for what is measured
    before = anonymous()
    watcher = subprocess.Popen([sys.executable, "-S", "-c", _WATCH, str(os.getpid()), str(told)])
    time.sleep(0.3)  # until it watches
    try:
        yield
    finally:
        told.touch()
        watcher.wait(timeout=30)
        found[name] = int(told.read_text()) - before
        told.unlink()
