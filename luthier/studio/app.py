"""The whole server: the studio's pages and routes, and beside them the API with its models.

The API's application needs torch and takes seconds to import, so it is made when its first request comes; until then
the pages answer already.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.api.settings import ServerSection
from luthier.runtime.errors import LuthierError
from luthier.serve.http.errors import ApiError, handlers
from luthier.studio.context import Studio
from luthier.studio.http.errors import failed
from luthier.studio.http.gate import Gate, KeyCheck
from luthier.studio.http.routes import STATIC, routes
from luthier.studio.http.session import Sessions

__all__ = ["LaterApp", "studio_app"]


def studio_app(
    studio: Studio, settings: ServerSection, sessions: Sessions, *, other: ASGIApp | None = None, static: Path = STATIC,
    key_is_admin: KeyCheck | None = None, secure: bool = False,
) -> Gate:  # fmt: skip
    """Build the application.

    Args:
        studio: What it shows.
        settings: Address and bounds.
        sessions: Links and cookies.
        other: Answers every path that is not the studio's (the API); None: 404.
        static: The built pages.
        key_is_admin: Looks a key of the API up; None: there are none.
        secure: The cookie goes over HTTPS only.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        studio.index.refresh()
        yield
        if isinstance(other, LaterApp):
            other.close()
        studio.close()

    inner = Starlette(
        routes=routes(studio, sessions, chat=other is not None, static=static, secure=secure),
        exception_handlers=handlers, lifespan=lifespan,
    )  # fmt: skip
    return Gate(
        inner, other or _nothing_else, sessions=sessions, settings=settings, key_is_admin=key_is_admin or _no_keys
    )


async def _no_keys(key: str, address: str) -> bool:
    return False


async def _nothing_else(scope: Scope, receive: Receive, send: Send) -> None:
    await ApiError(404, f"no such route: {scope['method']} {scope['path'][:200]}").send(scope, receive, send)


class LaterApp:
    """An application that is made by its first request."""

    def __init__(self, make: Callable[[], Any], end: Callable[[Any], None]) -> None:
        self._make, self._end = make, end
        self._lock = threading.Lock()
        self._app: Any = None

    def _made(self) -> Any:
        with self._lock:
            if self._app is None:
                self._app = self._make()
            return self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make it if need be, and pass the request on."""
        app = self._app
        if app is None:
            try:
                app = await asyncio.to_thread(self._made)
            except LuthierError as error:
                answer: Response = failed(error, ()).response()
                await answer(scope, receive, send)
                return
        await app(scope, receive, send)

    def close(self) -> None:
        """End it, if it was made."""
        with self._lock:
            if self._app is not None:
                self._end(self._app)
