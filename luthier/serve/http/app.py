"""The ASGI application: `app(host, settings)`; more routes can be put beside the model's own.

The guard (key, addresses, body size) and the shape of errors hold for every route, added ones included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serve.host import Host
from luthier.serve.http.asking import Service
from luthier.serve.http.chat import ChatRoute
from luthier.serve.http.completions import CompletionRoute
from luthier.serve.http.errors import handlers
from luthier.serve.http.guard import Guard
from luthier.serve.http.listing import ListingRoutes, Resolve
from luthier.serve.http.metrics import Metrics
from luthier.serve.settings import ServeSettings

__all__ = ["app"]


def app(
    host: Host, settings: ServeSettings, *, resolve: Resolve | None = None, routes: Sequence[BaseRoute] = (),
    guard: Middleware | None = None,
) -> Starlette:  # fmt: skip
    """Build the application.

    Args:
        host: Models; closed when the application shuts down.
        settings: Keys and bounds.
        resolve: How `POST /admin/models` turns a path into something to load; without it, it loads nothing.
        routes: Further routes; they stand before the built-in ones.
        guard: What stands before every route instead of `http.guard.Guard`; it must set `luthier.admin` in the scope.
    """
    service = Service(host=host, settings=settings, metrics=Metrics())
    listing = ListingRoutes(service, resolve)
    chat, completions = ChatRoute(service), CompletionRoute(service)
    built_in = [
        Route("/v1/chat/completions", chat.__call__, methods=["POST"]),
        Route("/v1/completions", completions.__call__, methods=["POST"]),
        Route("/v1/models", listing.models, methods=["GET"]),
        Route("/v1/models/{name:path}", listing.model, methods=["GET"]),
        Route("/admin/models", listing.load, methods=["POST"]),
        Route("/admin/models/{name:path}", listing.drop, methods=["DELETE"]),
        Route("/health", listing.health, methods=["GET"]),
        Route("/metrics", listing.metrics, methods=["GET"]),
    ]
    paths = {route.endpoint: route.path for route in [*routes, *built_in] if isinstance(route, Route)}

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        host.close()

    made = Starlette(
        routes=[*routes, *built_in],
        middleware=[
            Middleware(_Counting, metrics=service.metrics, paths=paths),
            guard or Middleware(Guard, settings=settings),
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    made.state.service = service
    return made


class _Counting:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Mapping[Any, str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass through, and look at the status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The pattern of the route, not the path: paths are the client's, and without end.
                route = self.paths.get(scope.get("endpoint"), "other")
                self.metrics.request(route, message["status"])
            await send(message)

        await self.app(scope, receive, counting)
