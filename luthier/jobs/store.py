"""The durable side of the service in one object: `service.db` and the files beside it.

Several processes and threads may use one home at once. Every change is one transaction that checks the old state.
Each part is a small module: files, uploads, jobs, queue, events, models, keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from luthier.jobs.database import Database
from luthier.jobs.events import EventStore
from luthier.jobs.jobs import JobStore
from luthier.jobs.keys import KeyStore
from luthier.jobs.models import ModelStore
from luthier.jobs.queue import QueueStore
from luthier.jobs.uploads import UploadStore

__all__ = ["Store"]


class Store(UploadStore, JobStore, QueueStore, EventStore, ModelStore, KeyStore):
    """Files, uploads, jobs, their queue, events, checkpoints, models, keys, audit log."""

    @classmethod
    def open(cls, home: str | Path, *, clock: Callable[[], float] = time.time) -> Store:
        """Open the service's folder, making it (for its user alone) when it is not there.

        Args:
            home: folder of `service.db`, `files/`, `parts/`.
            clock: seconds since 1970; tests give their own.

        Raises:
            EnvironmentProblem: J100 not writable or damaged, J101 written by a newer Luthier.
        """
        home = Path(home).absolute()
        return cls(home, Database.open(home / "service.db"), clock)

    def sweep(self) -> None:
        """Expire files and uploads, and remove what killed writers left; to be called now and then."""
        self.expire_files()
        self.expire_uploads()
