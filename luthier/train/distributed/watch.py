"""Heartbeats: each process writes what it does, and all look whether the run still moves.

    RUN/processes/rank-3.json   {"rank", "pid", "host", "beat", "operation", "step", "exchange", "idle_seconds", ...}

A thread writes the file every few seconds, whatever the process computes. The run hangs when no process has begun a new
operation for `limit` seconds, or one has not written for so long (it is stopped, or its host is gone). The lowest
process that still writes then says which process it is and what it was doing, leaves that as its error, and ends, which
makes the launcher end the others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.runtime.atomic import TEMP_PREFIX, explain_os_error
from luthier.runtime.env import read_env
from luthier.runtime.errors import LuthierError, RunFailed
from luthier.runtime.failure import leave_failure
from luthier.runtime.heartbeat import current

__all__ = ["FOLDER", "Beat", "beating", "describe_hang", "find_hang", "forget_beats", "read_beats"]

FOLDER = "processes"
"""In the run folder."""
EVERY_SECONDS = 5.0
"""Between two beats of a process, or less where patience is short."""
START_SECONDS = 60.0
"""That processes may begin one after the other, at least: the imports of a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a process wrote last."""

    rank: int
    host: str
    pid: int
    beat: int
    """Counts up as long as the process lives."""
    count: int
    """Operations it has begun."""
    operation: str
    step: int | None
    exchange: bool
    watched: bool
    idle_seconds: float
    """Since the operation began."""
    silent_seconds: float = 0.0
    """Since the reader saw a new beat."""

    def what(self) -> str:
        """In words."""
        step = "" if self.step is None else f" of step {self.step}"
        return f"`{self.operation}`{step}"


def find_hang(beats: Sequence[Beat], *, limit: float) -> list[Beat]:
    """The processes to blame, lowest rank first; none if the run moves, or does what may take long.

    Those that do not write any more; else those that do not wait for others; else those that are furthest behind.
    """
    silent = [beat for beat in beats if beat.silent_seconds > limit]
    if silent:
        return silent
    if not beats or not all(beat.watched for beat in beats) or min(beat.idle_seconds for beat in beats) <= limit:
        return []
    computing = [beat for beat in beats if not beat.exchange]
    if computing and len(computing) < len(beats):
        return computing
    behind = min(beat.count for beat in beats)
    return [beat for beat in beats if beat.count == behind]


def describe_hang(guilty: Sequence[Beat], beats: Sequence[Beat], *, resumes: bool = True) -> LuthierError:
    """The error that names them; `resumes`: there are checkpoints."""
    said = []
    for beat in guilty:
        where = f"process {beat.rank} ({beat.host}, pid {beat.pid})"
        if not beat.pid:
            said.append(f"process {beat.rank} has not begun for {beat.silent_seconds:.0f} s")
        elif beat.silent_seconds > beat.idle_seconds:
            said.append(f"{where} has not answered for {beat.silent_seconds:.0f} s; it was in {beat.what()}")
        else:
            said.append(f"{where} has been in {beat.what()} for {beat.idle_seconds:.0f} s")
    blamed = {beat.rank for beat in guilty}
    waiting = ", ".join(f"process {beat.rank} in {beat.what()}" for beat in beats if beat.rank not in blamed)
    return RunFailed(
        code="L142",
        message="the run hangs: " + "; ".join(said) + (f"; waiting for it: {waiting}" if waiting else ""),
        hint=("the newest checkpoint is whole: the same command goes on from it" if resumes else "start it again")
        + ". `LUTHIER_HANG_SECONDS` is the patience",
    )


def read_beats(folder: Path) -> list[Beat]:
    """Of all processes, by rank; a file that is being written or is damaged is left out."""
    found = []
    for file in folder.glob("rank-*.json"):
        try:
            found.append(Beat(**json.loads(file.read_text("utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda beat: beat.rank)


def forget_beats(run: Path) -> None:
    """Remove those of processes that are gone: a launcher does, before it starts others."""
    for pattern in ("rank-*.json", f"{TEMP_PREFIX}*"):
        for file in (run / FOLDER).glob(pattern):
            file.unlink(missing_ok=True)


@contextmanager
def beating(run: Path, *, resumes: bool = True) -> Iterator[None]:
    """Write heartbeats and watch those of the others inside; nothing with one process.

    Begins before processes meet: one that never comes is told of, too. `resumes`: there are checkpoints to go on from.
    """
    env = read_env()
    if env.world_size == 1:
        yield
        return
    folder = run / FOLDER
    watch = _Watch(folder, rank=env.rank, size=env.world_size, limit=env.hang_seconds, resumes=resumes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{env.rank}.json").unlink(missing_ok=True)
        watch.start()
    except OSError as error:
        raise explain_os_error(error, folder) from error
    try:
        yield
    finally:
        watch.stop()


class _Watch:
    def __init__(self, folder: Path, *, rank: int, size: int, limit: float, resumes: bool = True) -> None:
        self._folder, self._rank, self._size, self._limit, self._resumes = folder, rank, size, limit, resumes
        self._every = min(EVERY_SECONDS, max(0.5, limit / 4))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="luthier-heartbeat", daemon=True)
        self._seen: dict[int, tuple[int, int, float]] = {}
        """By rank: (pid, beat) and when it was first seen."""
        self._beats = 0
        self._began = time.monotonic()

    def start(self) -> None:
        self._write()
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError):  # a full disk must not stand in the place of what ended the run
            self._write()

    def _run(self) -> None:
        while not self._done.wait(self._every):
            try:
                self._write()
                self._look()
            except (OSError, LuthierError) as error:  # a full disk must not end a run that computes
                sys.stderr.write(f"heartbeat of process {self._rank}: {error}\n")

    def _write(self) -> None:
        now, self._beats = current(), self._beats + 1
        # Always the same name: what a killed process leaves does not add up. And nothing has to outlive a power cut.
        temporary = self._folder / f"{TEMP_PREFIX}rank-{self._rank}.json"
        temporary.write_text(json.dumps({
            "rank": self._rank, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beats,
            "count": now.count, "operation": now.name, "step": now.step, "exchange": now.exchange,
            "watched": now.watched, "idle_seconds": round(time.monotonic() - now.since, 1),
        }), "utf-8")  # fmt: skip
        temporary.replace(self._folder / f"rank-{self._rank}.json")

    def _look(self) -> None:
        beats = [self._timed(beat) for beat in read_beats(self._folder) if beat.rank < self._size]
        absent = set(range(self._size)) - {beat.rank for beat in beats}
        beats = sorted([*beats, *map(self._unheard, absent)], key=lambda beat: beat.rank)
        speaking = [beat.rank for beat in beats if beat.silent_seconds <= self._limit]
        guilty = find_hang(beats, limit=self._limit)
        if not guilty or not speaking or min(speaking) != self._rank or self._done.is_set():
            return
        error = describe_hang(guilty, beats, resumes=self._resumes)
        leave_failure(error)
        if not read_env().launched:
            sys.stderr.write(error.render() + "\n")
            sys.stderr.flush()
        os._exit(error.exit_code)

    def _unheard(self, rank: int) -> Beat:
        """A process without a file: all write one at the same place, the first of all when it has the folder."""
        waited = time.monotonic() - self._began
        silent = waited if waited > START_SECONDS else 0.0
        return Beat(rank=rank, host="", pid=0, beat=0, count=0, operation="starting", step=None, exchange=False,
                    watched=False, idle_seconds=0.0, silent_seconds=silent)  # fmt: skip

    def _timed(self, beat: Beat) -> Beat:
        now = time.monotonic()
        pid, number, since = self._seen.get(beat.rank, (0, -1, now))
        if (beat.pid, beat.beat) != (pid, number):
            since = now
            self._seen[beat.rank] = (beat.pid, beat.beat, now)
        return replace(beat, silent_seconds=now - since)
