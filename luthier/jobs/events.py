"""Events and checkpoints of jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from luthier.jobs.core import Core, as_record, dump, new_id, page, storable
from luthier.jobs.records import CheckpointRecord, EventRecord

__all__ = ["EventStore", "insert_event"]

_MAX_MESSAGE = 20_000


class EventStore(Core):
    """Add and list."""

    def add_event(
        self,
        job_id: str,
        level: str,
        message: str,
        type: str = "message",  # noqa: A002 - OpenAI's name
        data: Mapping[str, Any] | None = None,
        *,
        mark: str | None = None,
    ) -> EventRecord | None:
        """Add an event; None if one with the same `mark` is there.

        Args:
            job_id: of a job that exists.
            level: `info`, `warn` or `error`.
            message: for people; longer than 20,000 characters is cut, and says so.
            type: `message` or `metrics`.
            data: JSON values; numbers must be finite.
            mark: makes adding it again harmless, for instance `metrics-120`.
        """
        with self.database.writing() as connection:
            return insert_event(connection, self.now(), job_id, level, message, type=type, data=data, mark=mark)

    def events(self, job_id: str, after: str | None = None, limit: int = 20) -> tuple[list[EventRecord], bool]:
        """A page of events, newest first, and whether more follow."""
        with self.database.reading() as connection:
            return page(
                connection, "events", EventRecord, where=["job_id = :job"], values={"job": job_id}, after=after,
                limit=limit,
            )  # fmt: skip

    def events_since(self, job_id: str, seq: int = 0, limit: int = 1_000) -> list[EventRecord]:
        """Events after number `seq`, oldest first, for streams."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM events WHERE job_id = ? AND seq > ? ORDER BY seq LIMIT ?", (job_id, seq, limit)
            ).fetchall()
        return [as_record(EventRecord, row) for row in rows]

    def put_checkpoint(
        self, job_id: str, step: int, name: str, metrics: Mapping[str, Any], path: str
    ) -> CheckpointRecord:
        """Keep a checkpoint; the one of the same job and step is replaced, under its id."""
        with self.database.writing() as connection:
            connection.execute(
                "INSERT INTO checkpoints (id, job_id, created_at, step, name, metrics, path)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, step)"
                " DO UPDATE SET name = excluded.name, metrics = excluded.metrics, path = excluded.path",
                (new_id("ftckpt_"), job_id, self.now(), step, name, dump(dict(metrics)), path),
            )
            row = connection.execute(
                "SELECT * FROM checkpoints WHERE job_id = ? AND step = ?", (job_id, step)
            ).fetchone()
            return as_record(CheckpointRecord, row)

    def drop_checkpoint(self, job_id: str, step: int) -> None:
        """Forget a checkpoint whose folder is gone (`train.save_total_limit`)."""
        with self.database.writing() as connection:
            connection.execute("DELETE FROM checkpoints WHERE job_id = ? AND step = ?", (job_id, step))

    def checkpoints(
        self, job_id: str, after: str | None = None, limit: int = 10
    ) -> tuple[list[CheckpointRecord], bool]:
        """A page of checkpoints, latest step first, and whether more follow."""
        with self.database.reading() as connection:
            return page(
                connection, "checkpoints", CheckpointRecord, where=["job_id = :job"], values={"job": job_id},
                after=after, limit=limit, by="step",
            )  # fmt: skip


def insert_event(
    connection: sqlite3.Connection,
    now: int,
    job_id: str,
    level: str,
    message: str,
    *,
    type: str = "message",  # noqa: A002 - OpenAI's name
    data: Mapping[str, Any] | None = None,
    mark: str | None = None,
) -> EventRecord | None:
    """Write an event in the transaction of what it tells of."""
    message = storable(message)
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]} ... ({len(message):,} characters)"
    cursor = connection.execute(
        "INSERT INTO events (id, job_id, created_at, level, message, type, data, mark)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, mark) WHERE mark IS NOT NULL DO NOTHING",
        (new_id("ftevent-"), job_id, now, level, message, type, dump(dict(data or {})), mark),
    )
    if not cursor.rowcount:
        return None
    row = connection.execute("SELECT * FROM events WHERE seq = ?", (cursor.lastrowid,)).fetchone()
    return as_record(EventRecord, row)
