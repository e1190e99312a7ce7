"""Chat completions and completions with any model of the caller: loaded at once on first use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from luthier.api.asking import no_query
from luthier.api.caller import caller_of
from luthier.api.catalog import Catalog
from luthier.api.loading import Loader
from luthier.api.problems import answering
from luthier.serve.http.errors import invalid
from luthier.serve.http.schema import read_object

__all__ = ["AnswerRoute"]


class AnswerRoute:
    """One of the serving layer's routes, with its model put in place before."""

    def __init__(self, inner: Callable[[Request], Awaitable[Response]], catalog: Catalog, loader: Loader) -> None:
        self.inner, self.catalog, self.loader = inner, catalog, loader

    @answering
    async def answer(self, request: Request) -> Response:
        """Answer."""
        no_query(request)
        # The inner route is given the same object.
        name = (await read_object(request)).get("model")
        if not isinstance(name, str) or not name:
            code = "missing_required_parameter" if name is None else "invalid_value"
            raise invalid("model", "`model` must be the name of a model", code=code)
        loading = await self.catalog.find(name, caller_of(request))
        # A stream goes on after this block: the engine keeps what its answers need.
        async with self.loader.lease(name, loading):
            return await self.inner(request)
