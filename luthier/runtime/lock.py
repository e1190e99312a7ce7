"""One process at a time: a lock file that says whose it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["owned"]


@contextmanager
def owned(handle: int, taken: Callable[[str], Exception]) -> Iterator[None]:
    """Own an open lock file until the block or the process ends; meanwhile it holds the id of this process.

    Args:
        handle: of the file, open for reading and writing; closed at the end.
        taken: the error to raise where another process owns it, from what that one wrote (`unknown`: nothing).
    """
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken(os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown") from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(handle)
