"""Keeps a worker for each GPU and the clerk alive, and ends them with itself.

    with Supervisor(home, settings):    # `luthier api` does this
        ...

The processes hold the other end of a pipe: should this process die, however it does, they end their runs (SIGTERM:
a checkpoint is saved) and themselves. A process that died is started again, after a wait that doubles from half a
second to half a minute while it keeps dying young.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from luthier.jobs.worker.places import SETTINGS, places
from luthier.jobs.worker.settings import WorkerSettings
from luthier.runtime.atomic import TEMP_PREFIX
from luthier.runtime.console import note

__all__ = ["Supervisor"]

YOUNG_SECONDS = 10.0


@dataclass(slots=True)
class _Place:
    name: str
    environment: dict[str, str]
    child: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0


class Supervisor:
    """Start, watch, end. `start` returns at once; a thread watches."""

    def __init__(self, home: Path, settings: WorkerSettings) -> None:
        self.home, self.settings = home.absolute(), settings
        self._places = [_Place(name, variables) for name, variables in places(settings)]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""
        return len(self._places) - 1

    def pids(self) -> dict[str, int]:
        """Process ids of what is alive, by place."""
        with self._lock:
            return {one.name: one.child.pid for one in self._places if one.child and one.child.poll() is None}

    def start(self) -> None:
        """Write the settings where the processes read them, and start these."""
        (self.home / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_private(self.home / SETTINGS, self.settings.model_dump_json(indent=1))
        for one in self._places:
            self._spawn(one)
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self, *, seconds: float | None = None) -> None:
        """End them: runs get `grace_seconds` to save, their jobs go on at the next start.

        Args:
            seconds: After which they are killed; None: the grace time and ten seconds.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        children = [one.child for one in self._places if one.child is not None]
        for child in children:
            if child.stdin is not None:
                child.stdin.close()
        end = time.monotonic() + (self.settings.workers.grace_seconds + 10 if seconds is None else seconds)
        for child in children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()  # its run ends with it
                child.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for one in self._places:
                if one.child is not None and one.child.poll() is not None:
                    self._died(one, one.child.returncode)
                elif one.child is None and time.monotonic() >= one.started:
                    self._try_again(one)

    def _try_again(self, one: _Place) -> None:
        try:
            self._spawn(one)
        except OSError as error:  # no process or no file may be made just now
            one.started = time.monotonic() + 5.0
            note(f"{one.name} cannot be started: {error}", style="yellow")

    def _died(self, one: _Place, code: int) -> None:
        young = time.monotonic() - one.started < YOUNG_SECONDS
        one.deaths = one.deaths + 1 if young else 0
        wait = min(0.5 * 2 ** max(one.deaths - 1, 0), 30.0) if one.deaths else 0.0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        note(f"{one.name} ended ({how}); it starts again in {wait:.1f} s", style="yellow")
        with self._lock:
            if one.child is not None and one.child.stdin is not None:
                one.child.stdin.close()
            one.child, one.started = None, time.monotonic() + wait

    def _spawn(self, one: _Place) -> None:
        call = [sys.executable, "-m", "luthier.jobs.worker.process", "--home", str(self.home), "--place", one.name]
        log = os.open(self.home / "logs" / f"{one.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                call, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **one.environment},
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(log)
        with self._lock:
            one.child, one.started = child, time.monotonic()


def _write_private(file: Path, text: str) -> None:
    """For its owner alone from the first byte: there are secrets in it."""
    temporary = file.with_name(f"{TEMP_PREFIX}{file.name}-{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
