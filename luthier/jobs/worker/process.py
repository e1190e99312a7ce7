"""`python -m luthier.jobs.worker.process --home HOME --place NAME`: a worker, or the clerk.

It reads its settings from HOME/worker.json. A place belongs to one process at a time: a lock in HOME/places says so,
and what an earlier owner of the place left held is given back at the start. Standard input is a pipe from the
supervisor that nothing is written to: when it closes, the supervisor is gone, and this process ends.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from luthier.jobs.store import Store
from luthier.jobs.worker.clerk import run_clerk
from luthier.jobs.worker.hooks import recipe_maker
from luthier.jobs.worker.places import CLERK, SETTINGS
from luthier.jobs.worker.runner import Runner
from luthier.jobs.worker.settings import WorkerSettings
from luthier.launch.choose import launcher_of
from luthier.runtime.console import note

__all__ = ["give_back", "main", "own_place"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until the supervisor is gone or asks to stop."""
    parser = argparse.ArgumentParser(prog="luthier.jobs.worker.process")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--place", required=True)
    given = parser.parse_args(arguments)
    settings = WorkerSettings.model_validate_json((given.home / SETTINGS).read_text("utf-8"))
    stopping = threading.Event()
    _listen(stopping)
    with own_place(given.home, given.place, stopping) as owned:
        if not owned:
            return 0
        store = Store.open(given.home)
        try:
            give_back(store, given.place)
            if given.place == CLERK:
                run_clerk(store, settings, stopping)
            else:
                _work(store, settings, given.place, stopping)
        finally:
            store.close()
    return 0


def _work(store: Store, settings: WorkerSettings, place: str, stopping: threading.Event) -> None:
    runner = Runner(
        store=store, settings=settings, launcher=launcher_of(settings.launch), worker=place,
        recipe_of=recipe_maker(store, settings.service, Path(settings.runs)), stopping=stopping,
    )  # fmt: skip
    while not stopping.is_set():
        job = store.claim(place, settings.workers.lease_seconds)
        if job is None:
            stopping.wait(settings.workers.poll_seconds)
            continue
        note(f"{place}: {job.id}, attempt {job.attempts}")
        runner.run(job)
        note(f"{place}: {job.id} is {store.job(job.id).status}")


def _listen(stopping: threading.Event) -> None:
    def asked(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the supervisor, which closes the pipe

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stopping.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def own_place(home: Path, place: str, stopping: threading.Event) -> Iterator[bool]:
    """Wait until no other process has the place, and have it; False: asked to stop meanwhile."""
    folder = home / "places"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / f"{place}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not stopping.is_set():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
                continue
            yield True
            return
        yield False
    finally:
        os.close(handle)


def give_back(store: Store, place: str) -> list[str]:
    """Release what a dead process of this place held; ids of the jobs."""
    with store.database.writing() as connection:
        rows = connection.execute(
            "UPDATE jobs SET worker = NULL, lease_until = NULL WHERE worker = ? RETURNING id", (place,)
        ).fetchall()
    return [row["id"] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
