"""Tasks as children of this process, each in a process group of its own. They end when this process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from luthier.launch.task import Launcher, Status, Task, check_task
from luthier.runtime.atomic import explain_os_error

__all__ = ["Local"]


class Local(Launcher):
    """Children; what they are told of this process makes them end with it (`here.py`)."""

    remote = False

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def files(self, task: Task) -> dict[str, str]:
        """None: it is started, not submitted."""
        check_task(task)
        return {}

    def submit(self, task: Task) -> str:
        """Start it; the handle is its process id, which is also that of its group."""
        check_task(task)
        call = [
            sys.executable, "-m", "luthier.launch.here", "--out", str(task.out), "--err", str(task.err),
            "--parent", str(os.getpid()), "--", *task.command,
        ]  # fmt: skip
        try:
            child = subprocess.Popen(
                call, cwd=task.folder, env=dict(task.environment), stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise explain_os_error(error, task.folder) from error
        self._children[str(child.pid)] = child
        return str(child.pid)

    def find(self, task: Task) -> str | None:
        """None: what another process started has ended with it."""
        return None

    def status(self, handle: str) -> Status:
        """Running, or the exit code."""
        child = self._children.get(handle)
        if child is None:
            return Status(phase="unknown", detail="not a child of this process")
        code = child.poll()
        return Status(phase="running") if code is None else Status(phase="ended", exit_code=code)

    def stop(self, handle: str, *, hard: bool) -> None:
        """SIGTERM to the run, which looks after what it started; SIGKILL to the whole group."""
        child = self._children.get(handle)
        if child is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if hard:
                os.killpg(child.pid, signal.SIGKILL)
            elif child.poll() is None:
                child.send_signal(signal.SIGTERM)
