"""`/v1/files`: upload, list, look up, read, delete."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.api import wire
from luthier.api.asking import no_query, paging
from luthier.api.caller import caller_of
from luthier.api.multipart import read_form
from luthier.api.problems import answering
from luthier.jobs.blobs import BlobWriter
from luthier.jobs.settings import LimitsSection
from luthier.jobs.store import Store
from luthier.serve.http.errors import invalid

__all__ = ["FileRoutes", "expires_after"]

MIN_EXPIRY, MAX_EXPIRY = 3_600, 2_592_000
MAX_PAGE = 10_000
CHUNK = 1 << 18
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


class FileRoutes:
    """The routes."""

    def __init__(self, store: Store, limits: LimitsSection) -> None:
        self.store, self.limits = store, limits

    @answering
    async def create(self, request: Request) -> Response:
        """`POST /v1/files`."""
        no_query(request)
        owner = caller_of(request).owner
        async with read_form(request, "file", FIELDS, self._writer) as form:
            given = form.fields
            if "purpose" not in given:
                raise invalid("purpose", "`purpose` is missing", code="missing_required_parameter")
            expiry = expires_after(given.get("expires_after[anchor]"), given.get("expires_after[seconds]"))
            record = await asyncio.to_thread(
                self.store.keep_file, form.writer, owner, form.filename, given["purpose"], expiry
            )
        request.scope["luthier.subject"] = record.id
        return JSONResponse(wire.file(record))

    def _writer(self) -> BlobWriter:
        return self.store.file_writer(max_bytes=self.limits.file_bytes)

    @answering
    async def list(self, request: Request) -> Response:
        """`GET /v1/files`."""
        asked = paging(request, limit=MAX_PAGE, most=MAX_PAGE, others=("order", "purpose"))
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("order", f"`order` is asc or desc, not {order[:40]!r}")
        found, more = await asyncio.to_thread(
            self.store.files, caller_of(request).sees, after=asked.after, limit=asked.limit, order=order,
            purpose=request.query_params.get("purpose"),
        )  # fmt: skip
        return JSONResponse(wire.page([wire.file(record) for record in found], has_more=more, ends=True))

    @answering
    async def retrieve(self, request: Request) -> Response:
        """`GET /v1/files/ID`."""
        no_query(request)
        record = await asyncio.to_thread(self.store.file, request.path_params["file_id"], caller_of(request).sees)
        return JSONResponse(wire.file(record))

    @answering
    async def content(self, request: Request) -> Response:
        """`GET /v1/files/ID/content`."""
        no_query(request)
        record = await asyncio.to_thread(self.store.file, request.path_params["file_id"], caller_of(request).sees)
        path = await asyncio.to_thread(self.store.file_path, record)
        # Not through a link: what was put in a blob's place is not read.
        stream = await asyncio.to_thread(lambda: os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb"))
        headers = {
            "Content-Length": str(os.fstat(stream.fileno()).st_size),
            "Content-Disposition": f"attachment; filename*=utf-8''{quote(record.filename, safe='')}",
        }
        return StreamingResponse(_chunks(stream), media_type="application/octet-stream", headers=headers)

    @answering
    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/files/ID`."""
        no_query(request)
        file_id = request.path_params["file_id"]
        await asyncio.to_thread(self.store.delete_file, file_id, caller_of(request).sees)
        return JSONResponse(wire.deleted(file_id, "file"))


async def _chunks(stream: BinaryIO) -> AsyncIterator[bytes]:
    with stream:
        while chunk := await asyncio.to_thread(stream.read, CHUNK):
            yield chunk


def expires_after(anchor: object, seconds: object) -> int | None:
    """Seconds a file is kept; None: for ever.

    Raises:
        ApiError: 400.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid("expires_after", "`expires_after.anchor` must be created_at")
    text = str(seconds)
    number = int(text) if not isinstance(seconds, bool) and text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not MIN_EXPIRY <= number <= MAX_EXPIRY:
        raise invalid("expires_after", f"`expires_after.seconds` must be from {MIN_EXPIRY} to {MAX_EXPIRY}")
    return number
