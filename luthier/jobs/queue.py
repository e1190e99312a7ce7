"""The line of waiting jobs: who is claimed next, who holds a job, and when each will be done.

A worker holds a job by a lease that it renews with `beat`. When the lease runs out, the worker is taken for dead: the
job stays `running` and the next `claim` takes it up again.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from luthier.jobs.core import Core, as_record
from luthier.jobs.errors import LeaseLost
from luthier.jobs.events import insert_event
from luthier.jobs.jobs import job_row, move_row, write_fields
from luthier.jobs.records import JobRecord
from luthier.jobs.schedule import Waiting, finish_times
from luthier.jobs.states import message_of

__all__ = ["QueueStore"]

_LOST = "status = 'running' AND (lease_until IS NULL OR lease_until <= :now)"
_NEXT = f"""
WITH busy AS (
    SELECT owner, count(*) AS at_work FROM jobs WHERE status = 'running' AND lease_until > :now GROUP BY owner
)
SELECT jobs.* FROM jobs LEFT JOIN busy USING (owner) LEFT JOIN owners USING (owner)
WHERE wanted = 'run' AND (status IN ('queued', 'paused') OR {_LOST})
ORDER BY priority DESC, status = 'running' DESC, coalesce(at_work, 0), coalesce(last_claim, 0), seq LIMIT 1
"""
"""Highest priority; then what lost its worker; then the owner with the fewest jobs at work, of these the one served
longest ago; then the oldest job."""


class QueueStore(Core):
    """Claim, report, move on."""

    def claim(self, worker: str, lease_s: float) -> JobRecord | None:
        """Take the next job to run; it is `running` and held by `worker` for `lease_s` seconds. None: nothing waits.

        Jobs without a worker that are to be cancelled or paused are brought there first.
        """
        clock = self.clock()
        with self.database.writing() as connection:
            self._settle(connection, clock)
            row = connection.execute(_NEXT, {"now": clock}).fetchone()
            if row is None:
                return None
            id_, owner = row["id"], row["owner"]
            if row["status"] == "running":
                message = message_of(id_, "running", "running")
                insert_event(connection, self.now(), id_, "warn", message, data={"attempt": row["attempts"] + 1})
            else:
                move_row(connection, id_, "running", now=self.now())
            connection.execute(
                "UPDATE jobs SET worker = ?, lease_until = ?, attempts = attempts + 1 WHERE id = ?",
                (worker, clock + lease_s, id_),
            )
            connection.execute(
                "INSERT INTO owners (owner, last_claim)"
                " VALUES (:owner, (SELECT coalesce(max(last_claim), 0) + 1 FROM owners))"
                " ON CONFLICT (owner) DO UPDATE SET last_claim = excluded.last_claim",
                {"owner": owner},
            )
            return as_record(JobRecord, job_row(connection, id_))

    def claim_check(self, worker: str, lease_s: float) -> JobRecord | None:
        """Take the oldest job whose files are to be checked; it stays `validating_files`. None: nothing to check.

        Then `move(to="queued", by=worker)` or `move(to="failed", by=worker, error=...)`.
        """
        clock = self.clock()
        with self.database.writing() as connection:
            row = connection.execute(
                "SELECT id FROM jobs WHERE status = 'validating_files' AND (lease_until IS NULL OR lease_until <= ?)"
                " ORDER BY priority DESC, seq LIMIT 1",
                (clock,),
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET worker = ?, lease_until = ? WHERE id = ?", (worker, clock + lease_s, row["id"])
            )
            return as_record(JobRecord, job_row(connection, row["id"]))

    def beat(self, job_id: str, worker: str, lease_s: float) -> JobRecord:
        """Renew the lease; the record says what is `wanted`.

        Raises:
            LeaseLost: J104 another has the job, or it has ended.
        """
        with self.database.writing() as connection:
            self._mine(connection, job_id, worker)
            connection.execute("UPDATE jobs SET lease_until = ? WHERE id = ?", (self.clock() + lease_s, job_id))
            return as_record(JobRecord, job_row(connection, job_id))

    def release(self, job_id: str, worker: str) -> JobRecord:
        """Give a job back as it is, for the next `claim`: what a worker does when it shuts down.

        Raises:
            LeaseLost: J104.
        """
        with self.database.writing() as connection:
            self._mine(connection, job_id, worker)
            connection.execute("UPDATE jobs SET worker = NULL, lease_until = NULL WHERE id = ?", (job_id,))
            return as_record(JobRecord, job_row(connection, job_id))

    def move(self, job_id: str, *, to: str, by: str | None = None, **fields: Any) -> JobRecord:
        """Change the state of a job, with fields that change with it; the event that says so is added here.

        Args:
            job_id: of the job.
            to: the state.
            by: the worker that says so; it must hold the job. None: nobody is asked.
            fields: as `update`, for instance `error`, `fine_tuned_model`, `result_files`, `trained_tokens`.

        Raises:
            Conflict: J103 the state may not follow.
            LeaseLost: J104.
        """
        with self.database.writing() as connection:
            if by is not None:
                self._mine(connection, job_id, by)
            move_row(connection, job_id, to, now=self.now(), fields=fields)
            return as_record(JobRecord, job_row(connection, job_id))

    def update(self, job_id: str, *, by: str | None = None, **fields: Any) -> JobRecord:
        """Change fields that are no state: `hyperparameters`, `method`, `estimated_finish`, `planned_seconds`,
        `trained_tokens`, `result_files`, `fine_tuned_model`, `error`, `base`, `priority`.

        Raises:
            LeaseLost: J104.
            TypeError: another field.
        """
        with self.database.writing() as connection:
            if by is not None:
                self._mine(connection, job_id, by)
            write_fields(connection, job_id, fields)
            return as_record(JobRecord, job_row(connection, job_id))

    def refresh_estimates(self, workers: int = 1) -> None:
        """Set `estimated_finish` of the jobs in line from their `planned_seconds` and those before them.

        Args:
            workers: how many take jobs.
        """
        with self.database.writing() as connection:
            running = connection.execute("SELECT owner, estimated_finish FROM jobs WHERE status = 'running'").fetchall()
            rows = connection.execute(
                "SELECT id, owner, priority, seq, planned_seconds, estimated_finish FROM jobs"
                " WHERE status = 'queued' OR (status = 'paused' AND wanted = 'run')"
            ).fetchall()
            served = dict(connection.execute("SELECT owner, last_claim FROM owners").fetchall())
            line = [
                Waiting(row["id"], row["owner"], row["priority"], row["seq"], row["planned_seconds"]) for row in rows
            ]
            at_work = [(row["owner"], row["estimated_finish"]) for row in running]
            times = finish_times(line, at_work, served, workers=workers, now=self.now())
            changed = [(times[row["id"]], row["id"]) for row in rows if times[row["id"]] != row["estimated_finish"]]
            connection.executemany("UPDATE jobs SET estimated_finish = ? WHERE id = ?", changed)

    def _settle(self, connection: sqlite3.Connection, clock: float) -> None:
        """Bring what no worker holds any more to where its owner wants it."""
        rows = connection.execute(f"SELECT id, wanted FROM jobs WHERE {_LOST} AND wanted <> 'run'", {"now": clock})
        for row in rows.fetchall():
            move_row(connection, row["id"], "cancelled" if row["wanted"] == "cancel" else "paused", now=self.now())

    def _mine(self, connection: sqlite3.Connection, job_id: str, worker: str) -> None:
        row = job_row(connection, job_id)
        if row["worker"] != worker:
            whose = f"held by {row['worker']}" if row["worker"] else f"{row['status']} and held by no worker"
            raise LeaseLost(code="J104", message=f"job {job_id} is {whose}, no longer by {worker}")
