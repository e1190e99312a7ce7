"""What a worker remembers of a job, written in the transaction of the events it comes from."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.jobs.store import Store

__all__ = ["Place", "Progress", "read_progress", "write_progress"]


@dataclass(slots=True)
class Place:
    """How far a log has been followed."""

    offset: int = 0
    """Bytes, always at the beginning of a line."""
    inode: int = 0
    """Of the file: a log that was rolled back is another file."""


@dataclass(slots=True)
class Progress:
    """Of one job. Mutable: the worker advances it."""

    events: Place = field(default_factory=Place)
    metrics: Place = field(default_factory=Place)
    step: int = 0
    """Highest step seen."""
    total_steps: int | None = None
    news: int = 0
    """Events told; what a run does again is no news."""
    crashes: int = 0
    """Deaths of the run in a row without news."""
    seen: int = 0
    """News there were at the last death."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        return cls(**{**value, "events": Place(**value["events"]), "metrics": Place(**value["metrics"])})


def read_progress(store: Store, job_id: str) -> Progress:
    """What is remembered of a job; at first nothing."""
    with store.database.reading() as connection:
        row = connection.execute("SELECT value FROM progress WHERE job_id = ?", (job_id,)).fetchone()
    return Progress() if row is None else Progress.from_json(json.loads(row["value"]))


def write_progress(connection: sqlite3.Connection, job_id: str, progress: Progress) -> None:
    """Remember it, in the caller's transaction."""
    connection.execute(
        "INSERT INTO progress (job_id, value) VALUES (?, ?) ON CONFLICT (job_id) DO UPDATE SET value = excluded.value",
        (job_id, json.dumps(progress.to_json(), allow_nan=False)),
    )
