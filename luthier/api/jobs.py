"""`/v1/fine_tuning/jobs`: create, list, look up, cancel, pause, resume; events and checkpoints; permissions."""

from __future__ import annotations

import asyncio
import re
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.api import wire
from luthier.api.asking import empty_body, no_query, paging
from luthier.api.caller import caller_of, tightest
from luthier.api.catalog import Catalog
from luthier.api.problems import answering
from luthier.jobs.create import job_from_body
from luthier.jobs.jobs import body_digest
from luthier.jobs.records import JobRecord
from luthier.jobs.settings import ApiSettings
from luthier.jobs.store import Store
from luthier.serve.http.errors import ApiError, invalid
from luthier.serve.http.schema import read_object

__all__ = ["JobRoutes"]

_METADATA = re.compile(r"metadata\[(.{1,64})\]\Z", re.DOTALL)
JOBS, EVENTS, CHECKPOINTS = 20, 20, 10
"""Objects of a page that no `limit` was given for, as at OpenAI."""


class JobRoutes:
    """The routes."""

    def __init__(self, store: Store, catalog: Catalog, settings: ApiSettings) -> None:
        self.store, self.catalog, self.settings = store, catalog, settings

    @answering
    async def create(self, request: Request) -> Response:
        """`POST /v1/fine_tuning/jobs`.

        Sent again with the same `Idempotency-Key`, it answers with the job that was made. The official client sends
        none, but says when it tries again: such a request answers with the job of the same body, too.
        """
        no_query(request)
        body = await read_object(request)
        key = request.headers.get("idempotency-key")
        retried = request.headers.get("x-stainless-retry-count", "0") not in ("0", "")
        caller, digest = caller_of(request), body_digest(body)

        def make() -> JSONResponse:
            # Before any check: what was true when the job was made need not be so any more.
            made = self.store.known_job(caller.owner, key, digest, retried=retried)
            if made is None:
                record = job_from_body(body, self.store, self.settings, caller.owner)
                made, _ = self.store.create_job(
                    record,
                    key,
                    digest=digest,
                    retried=retried,
                    max_queued=tightest(caller.limits.get("max_queued"), self.settings.limits.max_queued),
                )
            request.scope["luthier.subject"] = made.id
            return JSONResponse(wire.job(made))

        return await asyncio.to_thread(make)

    @answering
    async def list(self, request: Request) -> Response:
        """`GET /v1/fine_tuning/jobs`, newest first."""
        asked = paging(request, limit=JOBS, others=("metadata",))
        wanted = {}
        for name, value in request.query_params.items():
            if match := _METADATA.match(name):
                wanted[match[1]] = value
            elif name.startswith("metadata"):
                raise invalid(name[:80], "write the filter as `metadata[key]=value`")
        found, more = await asyncio.to_thread(
            self.store.jobs, caller_of(request).sees, after=asked.after, limit=asked.limit, metadata=wanted or None
        )
        return JSONResponse(wire.page([wire.job(record) for record in found], has_more=more))

    @answering
    async def retrieve(self, request: Request) -> Response:
        """`GET /v1/fine_tuning/jobs/ID`."""
        no_query(request)
        return JSONResponse(wire.job(await self._job(request)))

    @answering
    async def cancel(self, request: Request) -> Response:
        """`POST /v1/fine_tuning/jobs/ID/cancel`."""
        return await self._want(request, "cancel")

    @answering
    async def pause(self, request: Request) -> Response:
        """`POST /v1/fine_tuning/jobs/ID/pause`."""
        return await self._want(request, "pause")

    @answering
    async def resume(self, request: Request) -> Response:
        """`POST /v1/fine_tuning/jobs/ID/resume`."""
        return await self._want(request, "run")

    @answering
    async def events(self, request: Request) -> Response:
        """`GET /v1/fine_tuning/jobs/ID/events`, newest first."""
        asked = paging(request, limit=EVENTS, most=1_000)
        job = await self._job(request)
        found, more = await asyncio.to_thread(self.store.events, job.id, after=asked.after, limit=asked.limit)
        return JSONResponse(wire.page([wire.event(record) for record in found], has_more=more))

    @answering
    async def checkpoints(self, request: Request) -> Response:
        """`GET /v1/fine_tuning/jobs/ID/checkpoints`, newest first."""
        asked = paging(request, limit=CHECKPOINTS)
        job = await self._job(request)
        found, more = await asyncio.to_thread(self.store.checkpoints, job.id, after=asked.after, limit=asked.limit)
        return JSONResponse(wire.page([wire.checkpoint(record) for record in found], has_more=more, ends=True))

    @answering
    async def permissions(self, request: Request) -> Response:
        """`.../checkpoints/NAME/permissions`: there are no projects here to share with."""
        await self.catalog.record(request.path_params["name"], caller_of(request))
        raise ApiError(
            501, "checkpoints are not shared between projects on this server: an owner's keys all see them",
            code="not_supported",
        )  # fmt: skip

    async def _job(self, request: Request) -> JobRecord:
        return await asyncio.to_thread(self.store.job, request.path_params["job_id"], caller_of(request).sees)

    async def _want(self, request: Request, wanted: Literal["run", "pause", "cancel"]) -> Response:
        no_query(request)
        await empty_body(request)
        job = await self._job(request)
        changed = await asyncio.to_thread(self.store.want, job.id, wanted)
        return JSONResponse(wire.job(changed))
