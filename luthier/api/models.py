"""`/v1/models`: bases, tuned models and checkpoints; deleting a tuned one."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.api import wire
from luthier.api.asking import no_query
from luthier.api.caller import caller_of
from luthier.api.catalog import Catalog
from luthier.api.loading import Loader
from luthier.api.problems import answering
from luthier.jobs.store import Store
from luthier.serve.http.errors import ApiError

__all__ = ["ModelRoutes"]


class ModelRoutes:
    """The routes."""

    def __init__(self, store: Store, catalog: Catalog, loader: Loader) -> None:
        self.store, self.catalog, self.loader = store, catalog, loader

    @answering
    async def list(self, request: Request) -> Response:
        """`GET /v1/models`: all at once, as at OpenAI."""
        no_query(request)
        found = await self.catalog.records(caller_of(request))
        return JSONResponse(wire.page([wire.model(record) for record in found], has_more=False))

    @answering
    async def retrieve(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        no_query(request)
        record = await self.catalog.record(request.path_params["name"], caller_of(request))
        return JSONResponse(wire.model(record))

    @answering
    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/models/NAME`: a tuned model or a checkpoint; the run folder stays as it is."""
        no_query(request)
        name, caller = request.path_params["name"], caller_of(request)
        record = await self.catalog.record(name, caller)
        if record.kind == "base":
            raise ApiError(403, f"`{name[:200]}` is a base model: only tuned ones can be deleted", param="model",
                           code="base_model")  # fmt: skip
        await asyncio.to_thread(self.store.delete_model, name, caller.sees)
        await self.loader.forget(name)
        return JSONResponse(wire.deleted(name, "model"))
