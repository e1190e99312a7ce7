"""Work that takes longer than a request: begun once, asked for again until it is there."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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


class Work:
    """A few threads, and the results of the last pieces of work."""

    def __init__(self, *, threads: int = 2, kept: int = 16) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="studio-work")
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
                job = self._jobs[key] = _Job(self._pool.submit(do), what, time.monotonic())
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
        """Begin nothing more; what goes on is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
