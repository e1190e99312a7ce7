"""Memory of a process while something runs: what it has of the system, watched from outside by another process, and
what its `malloc` has given out, asked for by a thread.

The kernel has no mark of the most anonymous memory, and `VmHWM` counts the pages of mapped files. The second is less
than the first by what was freed and `malloc` keeps (`malloc_trim` gives it back): with glibc 2.36 up to half of what
came and went in tensors of 1 to 3 MiB. Blocks above 32 MiB always go back to the system.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
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


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]  # fmt: skip


def anonymous() -> int:
    """Bytes of this process that are no pages of files, now."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10


def given_out() -> int:
    """Bytes that `malloc` has given out and that were not freed, now."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


@contextmanager
def watched(folder: Path, found: dict[str, int], name: str) -> Iterator[None]:
    """`found[name]`, `found[name held]`: bytes above what was there at the beginning, at their highest, both ways."""
    told = folder / f"told-{os.getpid()}"
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no room for what is measured
    before, held, most, done = anonymous(), given_out(), [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            most[0] = max(most[0], given_out())
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    watcher = subprocess.Popen([sys.executable, "-S", "-c", _WATCH, str(os.getpid()), str(told)])
    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(0.3)  # until it watches
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
        told.touch()
        watcher.wait(timeout=30)
        found |= {name: int(told.read_text()) - before, f"{name} held": most[0] - held}
        told.unlink()
