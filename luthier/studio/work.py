"""Work that takes longer than a request: begun once, asked for again until it is there."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

__all__ = ["Unfinished", "Work"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unfinished(Exception):
    """It is not there yet: an answer, not a failure."""

    what: str
    elapsed: float

    def to_json(self) -> dict[str, Any]:
        """As the page gets it."""
        return {"state": "working", "what": self.what, "done": None, "total": None, "elapsed": round(self.elapsed, 1)}


@dataclass(slots=True)
class _Job:
    future: Future[Any]
    what: str
    began: float


class _Threads:
    """A few threads that the end of the program does not wait for, as it does for those of concurrent.futures."""

    def __init__(self, count: int) -> None:
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._left, self._closed = count, False

    def submit(self, do: Callable[[], T]) -> Future[T]:
        """Begin `do` when a thread is free. One caller at a time."""
        future: Future[T] = Future()
        if self._closed:
            future.cancel()
            return future
        self._waiting.put((future, do))
        if self._left:
            self._left -= 1
            threading.Thread(target=self._run, name=f"studio-work-{self._left}", daemon=True).start()
        return future

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True
        while True:
            try:
                self._waiting.get_nowait()[0].cancel()
            except Empty:
                return

    def _run(self) -> None:
        while True:
            future, do = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(do())
            except BaseException as error:  # noqa: BLE001 - for whoever asks
                future.set_exception(error)


class Work:
    """A few threads, and the results of the last pieces of work."""

    def __init__(self, *, threads: int = 2, kept: int = 16) -> None:
        self._threads = _Threads(threads)
        self._jobs: OrderedDict[Hashable, _Job] = OrderedDict()
        self._lock = threading.Lock()
        self._kept = kept

    def get(self, key: Hashable, do: Callable[[], T], *, what: str, wait: float = 0.2) -> T:
        """The result; what was raised is raised, once: the next call begins anew.

        Args:
            key: Of the work; the same key is done once.
            do: The work.
            what: In words, for the page.
            wait: Seconds that the caller has.

        Raises:
            Unfinished: not there yet.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job(self._threads.submit(do), what, time.monotonic())
                self._forget()
            self._jobs.move_to_end(key)
        try:
            found: T = job.future.result(timeout=wait)
        except TimeoutError as error:
            if job.future.done():  # the work itself ran out of time
                self._drop(key, job)
                raise
            raise Unfinished(job.what, time.monotonic() - job.began) from error
        except BaseException:
            self._drop(key, job)
            raise
        return found

    def state(self, key: Hashable) -> str:
        """`none`, `working` or `done`."""
        with self._lock:
            job = self._jobs.get(key)
        return "none" if job is None else "done" if job.future.done() else "working"

    def _drop(self, key: Hashable, job: _Job) -> None:
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]

    def _forget(self) -> None:
        """Results that were not asked for in a long time; work that goes on stays."""
        done = [key for key, job in self._jobs.items() if job.future.done()]
        for key in done[: max(0, len(self._jobs) - self._kept)]:
            del self._jobs[key]

    def close(self) -> None:
        """Begin nothing more; what goes on is not waited for, not by the end of the program either."""
        with self._lock:
            self._threads.close()
