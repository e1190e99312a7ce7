"""All routes of the studio."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from luthier.studio.context import Studio
from luthier.studio.http.data_routes import DataRoutes
from luthier.studio.http.errors import Handler, StudioError, answering
from luthier.studio.http.pages import PageRoutes
from luthier.studio.http.run_routes import RunRoutes
from luthier.studio.http.session import Sessions
from luthier.studio.http.work_routes import WorkRoutes

__all__ = ["API", "STATIC", "routes"]

API = "/studio/api"
STATIC = Path(__file__).parents[1] / "static"


def routes(
    studio: Studio, sessions: Sessions, *, chat: bool, static: Path = STATIC, secure: bool = False
) -> list[BaseRoute]:
    """Routes for a Starlette application; `http.gate.Gate` must stand before them.

    Args:
        studio: What they speak of.
        sessions: Who may ask.
        chat: Whether `/v1/chat/completions` is served beside them.
        static: The built pages.
        secure: The cookie goes over HTTPS only.
    """
    runs, data = RunRoutes(studio), DataRoutes(studio)
    work = WorkRoutes(studio, sessions, chat=chat)
    pages = PageRoutes(static, sessions, secure=secure)
    run = f"{API}/runs/{{run}}"
    table: list[tuple[str, str, Handler]] = [
        ("GET", f"{API}/session", work.session),
        ("POST", f"{API}/session/end", work.end),
        ("GET", f"{API}/system", runs.system),
        ("GET", f"{API}/runs", runs.list),
        ("GET", f"{API}/runs/stream", runs.list_stream),
        ("GET", run, runs.one),
        ("PATCH", run, runs.change),
        ("POST", f"{run}/actions", runs.act),
        ("GET", f"{run}/metrics", runs.metrics),
        ("GET", f"{run}/log", runs.log),
        ("GET", f"{run}/samples", runs.samples),
        ("GET", f"{run}/stream", runs.stream),
        ("GET", f"{run}/report", runs.report),
        ("GET", f"{run}/evals", runs.evals),
        ("GET", f"{run}/evals/{{task}}/rows", runs.eval_rows),
        ("GET", f"{API}/files", data.files),
        *_rows(f"{run}/data", data),
        *_rows(f"{API}/files/data", data),
        ("GET", f"{API}/schema", work.schema),
        ("GET", f"{API}/recipe/starters", work.starters),
        ("GET", f"{API}/recipe/fresh", work.fresh),
        ("POST", f"{API}/recipe/check", work.check),
        ("POST", f"{API}/recipe/edit", work.edit),
        ("POST", f"{API}/recipe/start", work.start),
        ("GET", f"{API}/compare", work.compare),
        ("GET", f"{API}/compare/rows", work.compare_rows),
        ("GET", f"{API}/models", work.models),
        ("POST", f"{API}/render", work.render),
        ("GET", "/studio/login", pages.login),
        ("GET", "/studio/assets/{name}", pages.asset),
        ("GET", "/", pages.root),
        ("GET", "/studio", pages.root),
    ]
    found: list[BaseRoute] = [
        Route(path, answering(handler, studio.places), methods=[method]) for method, path, handler in table
    ]
    found.append(
        Route(
            f"{API}/{{rest:path}}",
            answering(_nothing, studio.places),
            methods=["GET", "POST", "PATCH", "PUT", "DELETE"],
        )
    )
    found.append(Route("/studio/{rest:path}", answering(_page_or_file(pages), studio.places), methods=["GET"]))
    return found


def _rows(base: str, data: DataRoutes) -> list[tuple[str, str, Handler]]:
    return [
        ("GET", base, data.summary),
        ("POST", f"{base}/chips", data.chips),
        ("GET", f"{base}/rows", data.rows),
        ("GET", f"{base}/rows/{{row}}", data.row),
        ("GET", f"{base}/packs", data.packs),
        ("GET", f"{base}/packs/{{pack}}", data.pack),
    ]


async def _nothing(request: Request) -> Response:
    raise StudioError(404, f"no such route: {request.method} {request.url.path[:200]}", code="W106")


def _page_or_file(pages: PageRoutes) -> Handler:
    """A file beside index.html (an icon), else the page."""

    async def serve(request: Request) -> Response:
        rest = request.path_params["rest"]
        if "/" not in rest and "." in rest:
            request.path_params["name"] = rest
            return await pages.file(request)
        return await pages.page(request)

    return serve
