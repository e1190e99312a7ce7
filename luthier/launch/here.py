"""`python -m luthier.launch.here --out FILE --err FILE -- PROGRAM ...`: become a program that dies with its parent.

Redirects its output, asks the kernel for SIGTERM when the parent ends (Linux), and turns into the program: no process
stands between. SIGTERM because `luthier run` then saves a checkpoint. Imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

__all__ = ["die_with_parent", "main", "stop_when_orphaned"]

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """SIGTERM when the process that started this one ends; ends at once if `parent` is gone already. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before the call
        os._exit(128 + signal.SIGTERM)


def stop_when_orphaned() -> None:
    """SIGTERM to this process, once, when the one that started it is gone: it then saves, with all others of its run.

    A thread looks every second. The kernel's own signal would come once for each thread that the parent had, and a
    second SIGTERM stops at once.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="luthier-parent", daemon=True).start()


def main(arguments: list[str]) -> None:
    """Redirect, tie to the parent, become the program."""
    options, program = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    for number, name, flags in ((1, "--out", os.O_TRUNC), (2, "--err", os.O_APPEND)):
        handle = os.open(given[name], os.O_WRONLY | os.O_CREAT | flags, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    if "--parent" in given:
        die_with_parent(int(given["--parent"]))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
