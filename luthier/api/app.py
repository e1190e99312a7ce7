"""The application: the serving layer's with files, jobs, graders and models, behind the guard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from luthier.api.caller import RULES, Rule
from luthier.api.catalog import Catalog
from luthier.api.chat import AnswerRoute
from luthier.api.files import FileRoutes
from luthier.api.graders import GraderRoutes
from luthier.api.guard import Guard, Sessions
from luthier.api.internal import InternalChat
from luthier.api.jobs import JobRoutes
from luthier.api.loading import Loader
from luthier.api.models import ModelRoutes
from luthier.api.settings import ServiceSettings
from luthier.api.status import StatusRoutes
from luthier.api.uploads import UploadRoutes
from luthier.jobs.store import Store
from luthier.serve.host import Host
from luthier.serve.http.app import app
from luthier.serve.http.chat import ChatRoute
from luthier.serve.http.completions import CompletionRoute

__all__ = ["api_app"]

Handler = Callable[[Request], Awaitable[Response]]


def api_app(
    store: Store, host: Host, settings: ServiceSettings, *, routes: Sequence[BaseRoute] = (),
    rules: Sequence[Rule] = (), sessions: Sessions | None = None, catalog: Catalog | None = None,
) -> Starlette:  # fmt: skip
    """Build the application.

    Args:
        store: Files, jobs, keys.
        host: Models in memory; closed when the application shuts down.
        settings: From `api.yaml`.
        routes: Further routes (the studio's); they stand first.
        rules: The scopes that those need; without a rule a route is the admin's.
        sessions: Callers of pages that sign in with a cookie.
        catalog: Where models are looked up; None: in the settings and the store.
    """
    loader, catalog = Loader(host, settings.server), catalog or Catalog(store, settings)
    internal = InternalChat(catalog, loader)
    inner: dict[str, Handler] = {}

    async def chat(request: Request) -> Response:
        return await inner["chat"](request)

    async def completions(request: Request) -> Response:
        return await inner["completions"](request)

    own = [
        *_file_routes(store, settings), *_job_routes(store, catalog, settings),
        *_grader_routes(GraderRoutes(settings.server, internal)), *_model_routes(ModelRoutes(store, catalog, loader)),
        Route("/v1/chat/completions", AnswerRoute(chat, catalog, loader).answer, methods=["POST"]),
        Route("/v1/completions", AnswerRoute(completions, catalog, loader).answer, methods=["POST"]),
        Route("/health/details", StatusRoutes(store, loader).details, methods=["GET"]),
    ]  # fmt: skip
    guard = Middleware(Guard, store=store, settings=settings, rules=(*rules, *RULES), sessions=sessions)
    made = app(host, settings.server.serving(), routes=[*routes, *own], guard=guard)
    service = made.state.service
    internal.service = service
    inner |= {"chat": ChatRoute(service), "completions": CompletionRoute(service)}
    made.state.loader, made.state.catalog = loader, catalog
    return made


def _file_routes(store: Store, settings: ServiceSettings) -> list[Route]:
    files, uploads = FileRoutes(store, settings.limits), UploadRoutes(store, settings.limits)
    return [
        Route("/v1/files", files.create, methods=["POST"]),
        Route("/v1/files", files.list, methods=["GET"]),
        Route("/v1/files/{file_id}", files.retrieve, methods=["GET"]),
        Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
        Route("/v1/uploads", uploads.create, methods=["POST"]),
        Route("/v1/uploads/{upload_id}/parts", uploads.add_part, methods=["POST"]),
        Route("/v1/uploads/{upload_id}/complete", uploads.complete, methods=["POST"]),
        Route("/v1/uploads/{upload_id}/cancel", uploads.cancel, methods=["POST"]),
    ]


def _job_routes(store: Store, catalog: Catalog, settings: ServiceSettings) -> list[Route]:
    jobs, base = JobRoutes(store, catalog, settings), "/v1/fine_tuning/jobs"
    permissions = "/v1/fine_tuning/checkpoints/{name:path}/permissions"
    return [
        Route(base, jobs.create, methods=["POST"]),
        Route(base, jobs.list, methods=["GET"]),
        Route(base + "/{job_id}", jobs.retrieve, methods=["GET"]),
        Route(base + "/{job_id}/cancel", jobs.cancel, methods=["POST"]),
        Route(base + "/{job_id}/pause", jobs.pause, methods=["POST"]),
        Route(base + "/{job_id}/resume", jobs.resume, methods=["POST"]),
        Route(base + "/{job_id}/events", jobs.events, methods=["GET"]),
        Route(base + "/{job_id}/checkpoints", jobs.checkpoints, methods=["GET"]),
        Route(permissions, jobs.permissions, methods=["GET", "POST"]),
        Route(permissions + "/{permission_id}", jobs.permissions, methods=["DELETE"]),
    ]


def _grader_routes(graders: GraderRoutes) -> list[Route]:
    base = "/v1/fine_tuning/alpha/graders"
    return [
        Route(base + "/validate", graders.validate, methods=["POST"]),
        Route(base + "/run", graders.run, methods=["POST"]),
    ]


def _model_routes(models: ModelRoutes) -> list[Route]:
    return [
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{name:path}", models.retrieve, methods=["GET"]),
        Route("/v1/models/{name:path}", models.delete, methods=["DELETE"]),
    ]
