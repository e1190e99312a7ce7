"""Files of the service: a row in the database, and the bytes in `files/`, under the id (training files: `ID.jsonl`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from luthier.jobs.blobs import BlobWriter, blob_path, check_filename, chunks_of
from luthier.jobs.core import Core, as_record, new_id, owned, page, storable
from luthier.jobs.errors import Conflict, Invalid, ServiceError
from luthier.jobs.records import ALL_OWNERS, FileRecord
from luthier.jobs.states import LIVE
from luthier.runtime.atomic import TEMP_PREFIX

__all__ = ["MAX_FILE_BYTES", "PURPOSES", "RESULTS", "FileStore", "check_expiry", "check_purpose", "file_row"]

PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")
"""What a client may upload for."""
RESULTS = "fine-tune-results"
"""Purpose of the files a job writes."""
MAX_FILE_BYTES = 8 << 30
_EXPIRY = (3_600, 2_592_000)
_ORPHAN_SECONDS = 3_600


class FileStore(Core):
    """Files: add, look up, list, delete, expire."""

    @property
    def files_folder(self) -> Path:
        """Where the blobs are."""
        return self.home / "files"

    def file_writer(self, *, max_bytes: int = MAX_FILE_BYTES) -> BlobWriter:
        """A writer for bytes as they arrive; `keep_file` makes a file of it."""
        return BlobWriter(self.files_folder, max_bytes=max_bytes)

    def add_file(
        self,
        owner: str,
        filename: str,
        purpose: str,
        source: Path | BinaryIO | Iterable[bytes],
        expires_after: int | None = None,
        *,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> FileRecord:
        """Store a file whole.

        Args:
            owner: whose it is.
            filename: as the client calls it.
            purpose: one of `PURPOSES`, or `RESULTS` for what a job wrote.
            source: a path, a binary stream, or pieces.
            expires_after: seconds it is kept; None: for ever.
            max_bytes: larger ones are refused as soon as they are.

        Raises:
            Invalid: J106 name, J107 purpose, J108 expiry, J110 no bytes.
            TooLarge: J105.
            EnvironmentProblem: R710.
        """
        _check(filename, purpose, expires_after)
        with self.file_writer(max_bytes=max_bytes) as writer:
            for chunk in chunks_of(source):
                writer.write(chunk)
            return self.keep_file(writer, owner, filename, purpose, expires_after)

    def keep_file(
        self, writer: BlobWriter, owner: str, filename: str, purpose: str, expires_after: int | None = None
    ) -> FileRecord:
        """Make a file of what a writer holds; as `add_file`, inside the writer's block."""
        _check(filename, purpose, expires_after)
        record = self._commit(writer, owner, filename, purpose, expires_after)
        with self.database.writing() as connection:
            insert_file(connection, record)
        return record

    def _commit(
        self, writer: BlobWriter, owner: str, filename: str, purpose: str, expires_after: int | None
    ) -> FileRecord:
        """Put the blob in its place; the row is still to come."""
        if not writer.bytes:
            raise Invalid(code="J110", message="the file is empty", param="file")
        now = self.now()
        record = FileRecord(
            id=new_id("file-"), owner=owner, bytes=writer.bytes, created_at=now, filename=filename, purpose=purpose,
            expires_at=None if expires_after is None else now + expires_after, sha256=writer.sha256,
        )  # fmt: skip
        writer.commit(record.id, _suffix(purpose))
        return record

    def file(self, id_: str, owner: str = ALL_OWNERS) -> FileRecord:
        """One file.

        Raises:
            NotFound: J102.
        """
        with self.database.reading() as connection:
            return as_record(FileRecord, file_row(connection, id_, owner, self.now()))

    def files(
        self,
        owner: str,
        after: str | None = None,
        limit: int = 10_000,
        order: str = "desc",
        purpose: str | None = None,
    ) -> tuple[list[FileRecord], bool]:
        """A page of files, by default newest first; and whether more follow."""
        where = ["deleted_at IS NULL", "(expires_at IS NULL OR expires_at > :now)"]
        if owner != ALL_OWNERS:
            where.append("owner = :owner")
        if purpose is not None:
            where.append("purpose = :purpose")
        values = {"owner": owner, "purpose": purpose, "now": self.now()}
        with self.database.reading() as connection:
            return page(
                connection, "files", FileRecord, where=where, values=values, after=after, limit=limit, order=order
            )

    def file_path(self, record: FileRecord) -> Path:
        """Where its bytes are.

        Raises:
            ServiceError: J124 they are gone.
        """
        path = blob_path(self.files_folder, record.id, _suffix(record.purpose))
        if not path.is_file():
            error = ServiceError(code="J124", message=f"the bytes of {record.id} are gone from the disk")
            error.status = 500
            raise error
        return path

    def delete_file(self, id_: str, owner: str) -> FileRecord:
        """Delete a file that no live job needs.

        Raises:
            NotFound: J102.
            Conflict: J109 names the job.
        """
        with self.database.writing() as connection:
            record = as_record(FileRecord, file_row(connection, id_, owner, self.now()))
            job = needing_job(connection, id_)
            if job is not None:
                message = f"file {id_} is needed by job {job['id']}, which is {job['status']}"
                raise Conflict(code="J109", message=message, hint="cancel the job, or wait for its end")
            connection.execute("UPDATE files SET deleted_at = ? WHERE id = ?", (self.now(), id_))
        blob_path(self.files_folder, id_, _suffix(record.purpose)).unlink(missing_ok=True)
        return record

    def expire_files(self) -> list[str]:
        """Delete files whose time is over, unless a live job needs them, and what killed writers left; their ids."""
        now = self.now()
        with self.database.writing() as connection:
            due = connection.execute(
                "SELECT id, purpose FROM files WHERE deleted_at IS NULL AND expires_at <= ?", (now,)
            ).fetchall()
            gone = {row["id"]: row["purpose"] for row in due if needing_job(connection, row["id"]) is None}
            connection.executemany("UPDATE files SET deleted_at = ? WHERE id = ?", [(now, id_) for id_ in gone])
        for id_, purpose in gone.items():
            blob_path(self.files_folder, id_, _suffix(purpose)).unlink(missing_ok=True)
        self._sweep(self.files_folder, "files", "deleted_at IS NULL")
        return list(gone)

    def _sweep(self, folder: Path, table: str, alive: str) -> None:
        """Remove what has no row in `table`, if it is an hour old: younger ones may be waiting for their row."""
        if not folder.is_dir():
            return
        with self.database.reading() as connection:
            known = {row["id"] for row in connection.execute(f"SELECT id FROM {table} WHERE {alive}")}
        for path in folder.iterdir():
            ours = path.name.startswith((TEMP_PREFIX, "file-", "part_"))
            try:
                if (
                    ours
                    and path.name.partition(".jsonl")[0] not in known
                    and path.stat().st_mtime < self.clock() - _ORPHAN_SECONDS
                ):
                    path.unlink()
            except FileNotFoundError:
                continue


def insert_file(connection: sqlite3.Connection, record: FileRecord) -> None:
    """Write the row of a file."""
    connection.execute(
        "INSERT INTO files (id, owner, bytes, created_at, filename, purpose, status, status_details, expires_at,"
        " sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.id, record.owner, record.bytes, record.created_at, record.filename, record.purpose, record.status,
            record.status_details, record.expires_at, record.sha256,
        ),
    )  # fmt: skip


def file_row(
    connection: sqlite3.Connection, id_: str, owner: str, now: int, *, param: str | None = None
) -> sqlite3.Row:
    """The row of a file that is there and may be seen.

    A file past its time is gone, but for jobs that are still at work with it.
    """
    row = connection.execute("SELECT * FROM files WHERE id = ? AND deleted_at IS NULL", (storable(id_),)).fetchone()
    if row is not None and row["expires_at"] is not None and row["expires_at"] <= now:
        row = row if needing_job(connection, id_) is not None else None
    return owned(row, owner, "file", id_, param=param)


def needing_job(connection: sqlite3.Connection, file_id: str) -> sqlite3.Row | None:
    """A job that has not ended and trains on a file."""
    live = ", ".join(f"'{state}'" for state in sorted(LIVE))
    row: sqlite3.Row | None = connection.execute(
        f"SELECT id, status FROM jobs WHERE training_file = :file AND status IN ({live}) UNION ALL "
        f"SELECT id, status FROM jobs WHERE validation_file = :file AND status IN ({live}) LIMIT 1",
        {"file": file_id},
    ).fetchone()
    return row


def check_purpose(purpose: str) -> None:
    """Raise J107 for an unknown purpose."""
    if purpose not in (*PURPOSES, RESULTS):
        message = f"`purpose` is `{purpose[:40]}`; allowed are {', '.join(PURPOSES)}"
        raise Invalid(code="J107", message=message, param="purpose")


def check_expiry(seconds: int | None) -> None:
    """Raise J108 for a time out of the hosted service's range."""
    low, high = _EXPIRY
    if seconds is not None and (isinstance(seconds, bool) or not low <= seconds <= high):
        message = f"`expires_after.seconds` is {seconds}; allowed is {low:,} to {high:,} (an hour to 30 days)"
        raise Invalid(code="J108", message=message, param="expires_after.seconds")


def _suffix(purpose: str) -> str:
    """Ending of a blob: training files are read as JSON Lines, whatever the client called them."""
    return ".jsonl" if purpose == "fine-tune" else ""


def _check(filename: str, purpose: str, expires_after: int | None) -> None:
    check_filename(filename)
    check_purpose(purpose)
    check_expiry(expires_after)
