"""`/v1/uploads`: a file in parts."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.api import wire
from luthier.api.asking import empty_body, no_query
from luthier.api.caller import caller_of
from luthier.api.multipart import read_form
from luthier.api.problems import answering
from luthier.jobs.settings import LimitsSection
from luthier.jobs.store import Store
from luthier.serve.http.schema import read_body

__all__ = ["UploadRoutes"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ExpiresAfter(_Body):
    """`expires_after`."""

    anchor: Literal["created_at"]
    seconds: int


class CreateBody(_Body):
    """`POST /v1/uploads`."""

    bytes: int
    filename: str
    mime_type: Annotated[str, Field(max_length=200)]
    purpose: str
    expires_after: ExpiresAfter | None = None


class CompleteBody(_Body):
    """`POST /v1/uploads/ID/complete`."""

    part_ids: Annotated[list[str], Field(max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadRoutes:
    """The routes."""

    def __init__(self, store: Store, limits: LimitsSection) -> None:
        self.store, self.limits = store, limits

    @answering
    async def create(self, request: Request) -> Response:
        """`POST /v1/uploads`."""
        no_query(request)
        body = await read_body(request, CreateBody)
        record = await asyncio.to_thread(
            self.store.create_upload, caller_of(request).owner, body.filename, body.purpose, body.bytes,
            body.mime_type, None if body.expires_after is None else body.expires_after.seconds,
            max_bytes=self.limits.upload_bytes,
        )  # fmt: skip
        request.scope["luthier.subject"] = record.id
        return JSONResponse(wire.upload(record, None))

    @answering
    async def add_part(self, request: Request) -> Response:
        """`POST /v1/uploads/ID/parts`."""
        no_query(request)
        upload_id, sees = request.path_params["upload_id"], caller_of(request).sees
        # Before the bytes are read: they may be many.
        await asyncio.to_thread(self.store.upload, upload_id, sees)
        async with read_form(request, "data", (), self.store.part_writer) as form:
            record = await asyncio.to_thread(self.store.keep_part, form.writer, upload_id, sees)
        return JSONResponse(wire.part(record))

    @answering
    async def complete(self, request: Request) -> Response:
        """`POST /v1/uploads/ID/complete`."""
        no_query(request)
        body = await read_body(request, CompleteBody)
        record, file = await asyncio.to_thread(
            self.store.complete_upload, request.path_params["upload_id"], caller_of(request).sees, body.part_ids,
            body.md5,
        )  # fmt: skip
        return JSONResponse(wire.upload(record, file))

    @answering
    async def cancel(self, request: Request) -> Response:
        """`POST /v1/uploads/ID/cancel`."""
        no_query(request)
        await empty_body(request)
        record = await asyncio.to_thread(
            self.store.cancel_upload, request.path_params["upload_id"], caller_of(request).sees
        )
        return JSONResponse(wire.upload(record, None))
