"""Models: list, look up, load, drop; health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from luthier.runtime.errors import LuthierError
from luthier.serve.host import Served, Target
from luthier.serve.http.asking import Service
from luthier.serve.http.errors import ApiError, from_luthier
from luthier.serve.http.guard import is_admin
from luthier.serve.http.metrics import CONTENT_TYPE
from luthier.serve.http.schema import LoadBody, read_body

__all__ = ["ListingRoutes", "Resolve"]

Resolve = Callable[[str, str | None], Target]
"""From a path or hub id, and perhaps a name, to what is to be served."""


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name, "object": "model", "created": served.created, "owned_by": "luthier",
        "parent": served.parent, "max_model_len": served.context,
    }  # fmt: skip


class ListingRoutes:
    """The routes."""

    def __init__(self, service: Service, resolve: Resolve | None) -> None:
        self.service, self.resolve = service, resolve

    async def models(self, http: Request) -> Response:
        """`GET /v1/models`."""
        found = [self.service.host.find(name) for name in self.service.host.names()]
        return JSONResponse({"object": "list", "data": [_model(served) for served in found if served is not None]})

    async def model(self, http: Request) -> Response:
        """`GET /v1/models/NAME`."""
        return JSONResponse(_model(self.service.model(http.path_params["name"])))

    async def load(self, http: Request) -> Response:
        """`POST /admin/models`: load a run, an adapter or a model while others are served."""
        is_admin(http.scope)
        if self.resolve is None:
            raise ApiError(404, "this server loads no models at run time")
        body = await read_body(http, LoadBody)
        resolve = self.resolve
        try:
            served = await asyncio.to_thread(lambda: self.service.host.add(resolve(body.path, body.name)))
        except LuthierError as error:
            taken = error.problems[0].code == "S609"
            raise from_luthier(error, status=409 if taken else 400, param="name" if taken else "path") from error
        return JSONResponse(_model(served), 201)

    async def drop(self, http: Request) -> Response:
        """`DELETE /admin/models/NAME`."""
        is_admin(http.scope)
        name = http.path_params["name"]
        self.service.model(name)
        try:
            await asyncio.to_thread(self.service.host.remove, name)
        except LuthierError as error:
            raise from_luthier(error, status=409, param="model") from error
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    async def health(self, http: Request) -> Response:
        """`GET /health`: 200 while every engine's thread is alive."""
        dead = [engine for engine in self.service.host.engines if not engine.alive]
        return JSONResponse({"status": "dead" if dead else "ok"}, 503 if dead else 200)

    async def metrics(self, http: Request) -> Response:
        """`GET /metrics`."""
        engines = self.service.host.engines

        def total(get: Callable[[Any], float]) -> float:
            return float(sum(get(engine) for engine in engines))

        gauges = {
            "luthier_requests_waiting": ("gauge", "Requests without a row.", total(lambda e: e.waiting)),
            "luthier_requests_running": ("gauge", "Requests with a row.", total(lambda e: e.running)),
            "luthier_cache_bytes": ("gauge", "Memory of keys and values.", total(lambda e: e.slots.bytes)),
            "luthier_prompt_tokens_total": (
                "counter", "Prompt tokens read.", total(lambda e: e.counters.prompt_tokens),
            ),
            "luthier_reused_tokens_total": (
                "counter", "Prompt tokens that were not read again.", total(lambda e: e.counters.reused_tokens)
            ),
            "luthier_generated_tokens_total": (
                "counter", "Tokens generated.", total(lambda e: e.counters.generated_tokens)
            ),
            "luthier_decode_steps_total": ("counter", "Steps of decoding.", total(lambda e: e.counters.steps)),
            "luthier_busy_seconds_total": ("counter", "Time in forwards.", total(lambda e: e.counters.busy_seconds)),
        }  # fmt: skip
        return PlainTextResponse(self.service.metrics.render(gauges), media_type=CONTENT_TYPE)
