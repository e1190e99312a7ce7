"""Jobs: accept, look up, list, and what their owner wants of them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from typing import Any, Literal

from luthier.jobs.core import Core, as_record, dump, owned, page, storable
from luthier.jobs.errors import Conflict, Invalid, TooMany
from luthier.jobs.events import insert_event
from luthier.jobs.files import file_row
from luthier.jobs.records import ALL_OWNERS, JobRecord
from luthier.jobs.states import ENDED, WAITING, check_move, message_of

__all__ = ["JobStore", "body_digest", "job_row", "move_row", "write_fields"]

RETRY_SECONDS = 600.0
"""A retried create with the same body within this time is the same create."""
_MAX_KEY = 255
_COLUMNS = (
    "id", "owner", "created_at", "started_at", "finished_at", "estimated_finish", "model", "base", "status", "wanted",
    "method", "hyperparameters", "training_file", "validation_file", "suffix", "seed", "metadata", "integrations",
    "luthier", "result_files", "trained_tokens", "fine_tuned_model", "error", "run_name", "priority", "attempts",
    "worker", "lease_until", "planned_seconds",
)  # fmt: skip
_JSON = {"method", "hyperparameters", "metadata", "integrations", "luthier", "result_files", "error"}
_CHANGING = {
    "estimated_finish", "hyperparameters", "method", "result_files", "trained_tokens", "fine_tuned_model", "error",
    "base", "planned_seconds", "priority",
}  # fmt: skip
"""What may change in the life of a job, besides what the store itself keeps."""


class JobStore(Core):
    """Create, look up, list, want."""

    def create_job(
        self,
        record: JobRecord,
        idempotency_key: str | None = None,
        *,
        digest: str | None = None,
        retried: bool = False,
        max_queued: int | None = None,
    ) -> tuple[JobRecord, bool]:
        """Accept a job, once.

        Args:
            record: as `job_from_body` makes it.
            idempotency_key: of the request's header; the same key gives the same job.
            digest: `body_digest` of the request; default: of what the record says.
            retried: the client says that it sends the request again (`x-stainless-retry-count` over 0): a job of the
                same owner and body of the last ten minutes is taken for it.
            max_queued: most jobs of this owner that wait.

        Returns:
            The job, and whether it is new.

        Raises:
            NotFound: J102 a file that is not there, or another's.
            Invalid: J116 the key was used with another body, or is none.
            TooMany: J117 `max_queued` jobs wait already.
        """
        digest = digest or body_digest(_essence(record))
        if idempotency_key is not None and not 1 <= len(idempotency_key) <= _MAX_KEY:
            message = f"`Idempotency-Key` has {len(idempotency_key)} characters; allowed are 1 to {_MAX_KEY}"
            raise Invalid(code="J116", message=message)
        with self.database.writing() as connection:
            known = self._known(connection, record.owner, idempotency_key, digest, retried)
            if known is not None:
                return known, False
            for param in ("training_file", "validation_file"):
                file_id = getattr(record, param)
                if file_id is not None:
                    file_row(connection, file_id, record.owner, self.now(), param=param)
            _check_queue(connection, record.owner, max_queued)
            self._insert(connection, record)
            connection.execute(
                "INSERT INTO creates (owner, key, digest, created_at, job_id) VALUES (?, ?, ?, ?, ?)",
                (record.owner, idempotency_key, digest, self.clock(), record.id),
            )
        return record, True

    def known_job(
        self, owner: str, idempotency_key: str | None, digest: str, *, retried: bool = False
    ) -> JobRecord | None:
        """The job that an earlier request of the same key, or the request before a retry, made; before any check.

        Raises:
            Invalid: J116 the key was used with another body.
        """
        with self.database.reading() as connection:
            return self._known(connection, owner, idempotency_key, digest, retried)

    def job_counts(self) -> dict[str, int]:
        """Jobs of all owners by status."""
        with self.database.reading() as connection:
            return dict(connection.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())

    def _known(
        self, connection: sqlite3.Connection, owner: str, key: str | None, digest: str, retried: bool
    ) -> JobRecord | None:
        row = None
        if key is not None:
            row = connection.execute(
                "SELECT job_id, digest FROM creates WHERE owner = ? AND key = ?", (owner, key)
            ).fetchone()
            if row is not None and row["digest"] != digest:
                message = f"this `Idempotency-Key` made job {row['job_id']} from another body"
                raise Invalid(code="J116", message=message, hint="another key for another job")
        elif retried:
            row = connection.execute(
                "SELECT job_id FROM creates WHERE owner = ? AND digest = ? AND created_at > ? AND key IS NULL"
                " ORDER BY seq DESC LIMIT 1",
                (owner, digest, self.clock() - RETRY_SECONDS),
            ).fetchone()
        return None if row is None else as_record(JobRecord, job_row(connection, row["job_id"]))

    def _insert(self, connection: sqlite3.Connection, record: JobRecord) -> None:
        values = [getattr(record, name) for name in _COLUMNS]
        stored = [
            dump(value) if name in _JSON and value is not None else value
            for name, value in zip(_COLUMNS, values, strict=True)
        ]
        marks = ", ".join("?" for _ in _COLUMNS)
        cursor = connection.execute(f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({marks})", stored)
        connection.executemany(
            "INSERT INTO job_metadata (job_id, job_seq, key, value) VALUES (?, ?, ?, ?)",
            [(record.id, cursor.lastrowid, key, value) for key, value in record.metadata.items()],
        )
        now = self.now()
        insert_event(connection, now, record.id, "info", message_of(record.id, "", record.status))
        if record.status == "validating_files":
            insert_event(connection, now, record.id, "info", f"Validating training file: {record.training_file}")

    def job(self, id_: str, owner: str = ALL_OWNERS) -> JobRecord:
        """One job.

        Raises:
            NotFound: J102.
        """
        with self.database.reading() as connection:
            return as_record(JobRecord, job_row(connection, id_, owner))

    def jobs(
        self,
        owner: str,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        status: str | None = None,
    ) -> tuple[list[JobRecord], bool]:
        """A page of jobs, newest first, and whether more follow; all pairs of `metadata` must be there."""
        where, values = [], {"owner": owner, "status": status}
        if owner != ALL_OWNERS:
            where.append("owner = :owner")
        if status is not None:
            where.append("status = :status")
        for index, (key, value) in enumerate((metadata or {}).items()):
            where.append(f"seq IN (SELECT job_seq FROM job_metadata WHERE key = :k{index} AND value = :v{index})")
            values |= {f"k{index}": storable(key), f"v{index}": storable(value)}
        with self.database.reading() as connection:
            return page(connection, "jobs", JobRecord, where=where, values=values, after=after, limit=limit)

    def want(self, id_: str, wanted: Literal["run", "pause", "cancel"], owner: str = ALL_OWNERS) -> JobRecord:
        """Say what is to become of a job. Asked again, it answers the same.

        What no worker holds is moved at once; else the worker sees `wanted` at its next `beat`.

        Raises:
            NotFound: J102.
            Conflict: J103 the job has ended, or is not running (`pause`, `run`).
        """
        with self.database.writing() as connection:
            row = job_row(connection, id_, owner)
            status = row["status"]
            if wanted == "cancel" and (status == "cancelled" or (row["wanted"] == "cancel" and status not in ENDED)):
                return as_record(JobRecord, row)
            if status in ENDED or (wanted != "cancel" and (status in WAITING or row["wanted"] == "cancel")):
                raise _unwanted(row, wanted)
            connection.execute("UPDATE jobs SET wanted = ? WHERE id = ?", (wanted, id_))
            at_work = status == "running" and held(row, self.clock())
            if wanted == "cancel" and not at_work:
                move_row(connection, id_, "cancelled", now=self.now())
            elif wanted == "pause" and status == "running" and not at_work:
                move_row(connection, id_, "paused", now=self.now())
            return as_record(JobRecord, job_row(connection, id_))


def held(row: sqlite3.Row, clock: float) -> bool:
    """Whether a worker that still reports has the job."""
    return row["worker"] is not None and row["lease_until"] is not None and row["lease_until"] > clock


def job_row(connection: sqlite3.Connection, id_: str, owner: str = ALL_OWNERS) -> sqlite3.Row:
    """The row of a job that may be seen.

    Raises:
        NotFound: J102.
    """
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (storable(id_),)).fetchone()
    return owned(row, owner, "fine-tuning job", id_)


def move_row(
    connection: sqlite3.Connection, id_: str, to: str, *, now: int, fields: Mapping[str, Any] | None = None
) -> None:
    """Change the state of a job and add the event that says so. A job that stops being at work loses its worker.

    Raises:
        Conflict: J103 the state may not follow.
    """
    row = job_row(connection, id_)
    check_move(id_, row["status"], to)
    changes: dict[str, Any] = {"status": to, "worker": None, "lease_until": None}
    if to == "running":
        changes = {"status": to, "started_at": row["started_at"] or now}
    if to in ENDED:
        changes |= {"finished_at": now, "estimated_finish": None}
    if to == "paused":
        changes |= {"wanted": "pause" if row["wanted"] == "run" else row["wanted"], "estimated_finish": None}
    names = ", ".join(f"{name} = :{name}" for name in changes)
    connection.execute(f"UPDATE jobs SET {names} WHERE id = :id", {**changes, "id": id_})
    write_fields(connection, id_, fields or {})
    error = (fields or {}).get("error") or {}
    message = message_of(id_, row["status"], to, str(error.get("message", "")))
    insert_event(
        connection, now, id_, "error" if to == "failed" else "info", message, data={"error": error} if error else {}
    )


def write_fields(connection: sqlite3.Connection, id_: str, fields: Mapping[str, Any]) -> None:
    """Change fields of a job that are no state."""
    unknown = sorted(set(fields) - _CHANGING)
    if unknown:
        raise TypeError(f"not to be changed: {', '.join(unknown)}")
    for name, value in fields.items():
        stored = dump(value) if name in _JSON and value is not None else value
        connection.execute(f"UPDATE jobs SET {name} = ? WHERE id = ?", (stored, id_))


def body_digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a request body, whatever the order of its keys.

    Raises:
        Invalid: J130 a body that is nested too deeply, or has a number of thousands of digits.
    """
    try:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
    except (RecursionError, ValueError):
        message = "the body is nested too deeply, or has a number of thousands of digits"
        raise Invalid(code="J130", message=message) from None
    return hashlib.sha256(text.encode()).hexdigest()


def _essence(record: JobRecord) -> dict[str, Any]:
    names = (
        "model",
        "method",
        "training_file",
        "validation_file",
        "suffix",
        "seed",
        "metadata",
        "integrations",
        "luthier",
    )
    return {name: getattr(record, name) for name in names}


def _check_queue(connection: sqlite3.Connection, owner: str, most: int | None) -> None:
    if most is None:
        return
    states = ", ".join(f"'{state}'" for state in sorted(WAITING))
    waiting = connection.execute(
        f"SELECT count(*) FROM jobs WHERE owner = ? AND status IN ({states})", (owner,)
    ).fetchone()[0]
    if waiting >= most:
        message = f"{waiting} jobs of yours wait in line, and {most} may"
        raise TooMany(code="J117", message=message, hint="wait for one to start, or cancel one", retry_after=60)


def _unwanted(row: sqlite3.Row, wanted: str) -> Conflict:
    verb = {"run": "resumed", "pause": "paused", "cancel": "cancelled"}[wanted]
    status = row["status"]
    why = f"is {status}"
    if status not in ENDED and row["wanted"] == "cancel":
        why = "is being cancelled"
    hints = {"run": "only a paused job can be resumed", "pause": "only a running job can be paused"}
    hint = f"{status} is final" if status in ENDED else hints.get(wanted)
    return Conflict(code="J103", message=f"job {row['id']} {why} and cannot be {verb}", hint=hint)
