"""`python -m luthier.launch.here --out FILE --err FILE --parent PID -- PROGRAM ...`: become a program.

Redirects its output, leaves in `LUTHIER_PARENT` who started it, and turns into the program: no process stands between.
Commands of Luthier look after that process (`stop_when_orphaned`). The kernel's own signal at a parent's death
(PDEATHSIG) is not used: it belongs to the thread that forked, and a parent of several threads that is killed sends up
to one for each (seen: 3 with 5 threads), where a second SIGTERM means to stop without a checkpoint. Imports nothing of
ours.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

__all__ = ["PARENT", "main", "stop_when_orphaned"]

PARENT = "LUTHIER_PARENT"


def stop_when_orphaned() -> None:
    """SIGTERM to this process, once, when the one that started it is gone: it then saves, with all others of its run.

    Who that was stands in `LUTHIER_PARENT`, so one that is gone already is missed, too. The variable is taken out: it
    means this process, not what it will start. A thread looks every second.
    """
    given = os.environ.pop(PARENT, "")
    if not given.isdigit():
        return
    parent = int(given)

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
        os.environ[PARENT] = given["--parent"]
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
