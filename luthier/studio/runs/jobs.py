"""Jobs of the API, where its store is there: by the run folder each of them writes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from luthier.jobs.records import JobRecord
    from luthier.jobs.store import Store

__all__ = ["Jobs"]

_EVERYBODY = "*"
_PAGE, _MOST = 1_000, 20_000
_FRESH_SECONDS = 1.0


class Jobs:
    """Looks at the store at most once a second."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._known: dict[str, JobRecord] = {}
        self._at = 0.0

    def by_run(self) -> dict[str, JobRecord]:
        """Name of the run folder -> job."""
        with self._lock:
            if time.monotonic() - self._at > _FRESH_SECONDS:
                self._known = self._read()
                self._at = time.monotonic()
            return self._known

    def _read(self) -> dict[str, JobRecord]:
        found: dict[str, JobRecord] = {}
        after: str | None = None
        while len(found) < _MOST:
            page, more = self.store.jobs(_EVERYBODY, after=after, limit=_PAGE)
            found |= {job.run_name: job for job in page}
            if not more or not page:
                break
            after = page[-1].id
        return found

    def want(self, job: str, wanted: Literal["run", "pause", "cancel"]) -> None:
        """Ask for it.

        Raises:
            LuthierError: the job is in a state in which that cannot be.
        """
        self.store.want(job, wanted)
        with self._lock:
            self._at = 0.0
