"""Files that arrive in parts: announced with their size, sent piece by piece, put together when all are there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from luthier.jobs.blobs import BlobWriter, blob_path, check_filename, chunks_of
from luthier.jobs.core import as_record, new_id, owned, storable
from luthier.jobs.errors import Conflict, Invalid
from luthier.jobs.files import MAX_FILE_BYTES, FileStore, check_expiry, check_purpose, insert_file
from luthier.jobs.records import FileRecord, PartRecord, UploadRecord

__all__ = ["MAX_PART_BYTES", "UploadStore"]

MAX_PART_BYTES = 64 << 20
_MAX_PARTS = 10_000
_MAX_MIME = 200
_SECONDS = 3_600
"""An upload that is not complete after an hour expires, as the hosted service's do."""


class UploadStore(FileStore):
    """Uploads: create, add parts, complete, cancel, expire."""

    @property
    def parts_folder(self) -> Path:
        """Where the parts are until the upload ends."""
        return self.home / "parts"

    def create_upload(
        self,
        owner: str,
        filename: str,
        purpose: str,
        bytes_: int,
        mime_type: str,
        expires_after: int | None = None,
        *,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> UploadRecord:
        """Announce a file.

        Raises:
            Invalid: J106 name, J107 purpose, J108 expiry, J112 size, J131 MIME type.
        """
        check_filename(filename, param="filename")
        check_purpose(purpose)
        check_expiry(expires_after)
        if not mime_type.isprintable() or len(mime_type) > _MAX_MIME:
            message = f"`mime_type` takes at most {_MAX_MIME} printable characters"
            raise Invalid(code="J131", message=message, param="mime_type")
        if isinstance(bytes_, bool) or not 1 <= bytes_ <= max_bytes:
            raise Invalid(code="J112", message=f"`bytes` is {bytes_}; allowed is 1 to {max_bytes:,}", param="bytes")
        now = self.now()
        record = UploadRecord(
            id=new_id("upload_"), owner=owner, bytes=bytes_, created_at=now, expires_at=now + _SECONDS,
            filename=filename, purpose=purpose, mime_type=mime_type, file_expires_after=expires_after,
        )  # fmt: skip
        with self.database.writing() as connection:
            connection.execute(
                "INSERT INTO uploads (id, owner, bytes, created_at, expires_at, filename, purpose, mime_type, status,"
                " file_expires_after) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id, owner, bytes_, now, record.expires_at, filename, purpose, mime_type, record.status,
                    expires_after,
                ),
            )  # fmt: skip
        return record

    def upload(self, id_: str, owner: str) -> UploadRecord:
        """One upload.

        Raises:
            NotFound: J102.
        """
        with self.database.reading() as connection:
            row = connection.execute("SELECT * FROM uploads WHERE id = ?", (storable(id_),)).fetchone()
            return as_record(UploadRecord, owned(row, owner, "upload", id_))

    def part_writer(self) -> BlobWriter:
        """A writer for a part as it arrives; `keep_part` makes a part of it."""
        return BlobWriter(self.parts_folder, max_bytes=MAX_PART_BYTES)

    def add_part(self, upload_id: str, owner: str, source: Path | BinaryIO | Iterable[bytes]) -> PartRecord:
        """Store a part; parts may come in any order and side by side.

        Raises:
            NotFound: J102.
            Conflict: J111 the upload has ended.
            Invalid: J110 no bytes; J112 the parts together would be more than announced.
            TooLarge: J105 more than 64 MiB.
        """
        self._pending(upload_id, owner)
        with self.part_writer() as writer:
            for chunk in chunks_of(source):
                writer.write(chunk)
            return self.keep_part(writer, upload_id, owner)

    def keep_part(self, writer: BlobWriter, upload_id: str, owner: str) -> PartRecord:
        """Make a part of what a writer holds; as `add_part`, inside the writer's block."""
        if not writer.bytes:
            raise Invalid(code="J110", message="the part is empty", param="data")
        record = PartRecord(id=new_id("part_"), upload_id=upload_id, created_at=self.now(), bytes=writer.bytes)
        path = writer.commit(record.id)
        try:
            with self.database.writing() as connection:
                upload = self._pending_row(connection, upload_id, owner)
                held, count = connection.execute(
                    "SELECT coalesce(sum(bytes), 0), count(*) FROM parts WHERE upload_id = ?", (upload_id,)
                ).fetchone()
                # A part sent again after a lost answer lies there twice until `complete` says which is meant.
                if held + record.bytes > 2 * upload["bytes"] or count >= _MAX_PARTS:
                    message = f"the parts are more than the {upload['bytes']:,} bytes announced"
                    raise Invalid(code="J112", message=message, param="data")
                connection.execute(
                    "INSERT INTO parts (id, upload_id, created_at, bytes) VALUES (?, ?, ?, ?)",
                    (record.id, upload_id, record.created_at, record.bytes),
                )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return record

    def complete_upload(
        self, upload_id: str, owner: str, part_ids: Sequence[str], md5: str | None = None
    ) -> tuple[UploadRecord, FileRecord]:
        """Put the parts together in the order given. Asked again, it answers the same.

        Raises:
            NotFound: J102.
            Conflict: J111 cancelled or expired.
            Invalid: J112 bytes, J113 MD5, J114 parts.
        """
        upload = self.upload(upload_id, owner)
        if upload.status == "completed" and upload.file_id is not None:
            return upload, self.file(upload.file_id, owner)
        self._pending(upload_id, owner)
        parts = self._parts(upload_id, part_ids)
        total = sum(part.bytes for part in parts)
        if total != upload.bytes:
            message = f"the {len(parts)} parts are {total:,} bytes, announced were {upload.bytes:,}"
            raise Invalid(code="J112", message=message, param="part_ids")
        with self.file_writer(max_bytes=upload.bytes) as writer:
            for part in parts:
                for chunk in chunks_of(blob_path(self.parts_folder, part.id)):
                    writer.write(chunk)
            if md5 is not None and md5.lower() != writer.md5:
                message = f"the MD5 of the whole is {writer.md5}, given was {md5[:64]}"
                raise Invalid(code="J113", message=message, param="md5")
            file = self._commit(writer, upload.owner, upload.filename, upload.purpose, upload.file_expires_after)
        with self.database.writing() as connection:
            self._pending_row(connection, upload_id, owner)
            insert_file(connection, file)
            connection.execute(
                "UPDATE uploads SET status = 'completed', file_id = ? WHERE id = ?", (file.id, upload_id)
            )
        self._drop_parts(upload_id)
        return self.upload(upload_id, owner), file

    def cancel_upload(self, upload_id: str, owner: str) -> UploadRecord:
        """Give an upload up; asked again, it answers the same.

        Raises:
            NotFound: J102.
            Conflict: J111 completed or expired.
        """
        if self.upload(upload_id, owner).status != "cancelled":
            with self.database.writing() as connection:
                self._pending_row(connection, upload_id, owner)
                connection.execute("UPDATE uploads SET status = 'cancelled' WHERE id = ?", (upload_id,))
            self._drop_parts(upload_id)
        return self.upload(upload_id, owner)

    def expire_uploads(self) -> list[str]:
        """End the uploads whose hour is over and remove their parts; their ids."""
        with self.database.writing() as connection:
            due = connection.execute(
                "SELECT id FROM uploads WHERE status = 'pending' AND expires_at <= ?", (self.now(),)
            ).fetchall()
            ids = [row["id"] for row in due]
            connection.executemany("UPDATE uploads SET status = 'expired' WHERE id = ?", [(id_,) for id_ in ids])
        for id_ in ids:
            self._drop_parts(id_)
        self._sweep(self.parts_folder, "parts", "1")
        return ids

    def _parts(self, upload_id: str, part_ids: Sequence[str]) -> list[PartRecord]:
        """The parts named, in that order."""
        if not part_ids:
            raise Invalid(code="J114", message="`part_ids` is empty", param="part_ids")
        with self.database.reading() as connection:
            rows = connection.execute("SELECT * FROM parts WHERE upload_id = ?", (upload_id,)).fetchall()
        known = {row["id"]: as_record(PartRecord, row) for row in rows}
        unknown = [id_ for id_ in part_ids if id_ not in known]
        if unknown:
            raise Invalid(code="J114", message=f"no part `{unknown[0][:100]}` of this upload", param="part_ids")
        if len(set(part_ids)) < len(part_ids):
            raise Invalid(code="J114", message="`part_ids` names a part twice", param="part_ids")
        return [known[id_] for id_ in part_ids]

    def _pending(self, upload_id: str, owner: str) -> None:
        with self.database.reading() as connection:
            self._pending_row(connection, upload_id, owner)

    def _pending_row(self, connection: sqlite3.Connection, upload_id: str, owner: str) -> sqlite3.Row:
        """The row of an upload that can still take parts."""
        row = connection.execute("SELECT * FROM uploads WHERE id = ?", (storable(upload_id),)).fetchone()
        row = owned(row, owner, "upload", upload_id)
        status = row["status"]
        if status == "pending" and row["expires_at"] <= self.now():
            status = "expired"
        if status != "pending":
            raise Conflict(code="J111", message=f"upload {upload_id} is {status}", hint="create another one")
        return row

    def _drop_parts(self, upload_id: str) -> None:
        with self.database.writing() as connection:
            rows = connection.execute("SELECT id FROM parts WHERE upload_id = ?", (upload_id,)).fetchall()
            connection.execute("DELETE FROM parts WHERE upload_id = ?", (upload_id,))
        for row in rows:
            blob_path(self.parts_folder, row["id"]).unlink(missing_ok=True)
