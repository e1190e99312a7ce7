"""Routes of recipes, of comparisons, and of the playground."""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from luthier.runtime.errors import RecipeError
from luthier.runtime.hashing import hash_json
from luthier.studio.compare import MOST, Compared, compared, compared_rows
from luthier.studio.context import Studio
from luthier.studio.http.asked import body_of, field, number, page_of, word
from luthier.studio.http.errors import JsonAnswer
from luthier.studio.http.session import Sessions, cookie_of
from luthier.studio.models import known_models, named_model, rendered
from luthier.studio.recipes.check import check_text, planned
from luthier.studio.recipes.edit import edit_text
from luthier.studio.recipes.fresh import recipe_of_file, recipe_of_run
from luthier.studio.recipes.start import start_run
from luthier.studio.recipes.starters import starters
from luthier.studio.runs.line import signature

__all__ = ["WorkRoutes"]

_RECIPE = 1 << 20
_MESSAGES = 1_000


class WorkRoutes:
    """The routes."""

    def __init__(self, studio: Studio, sessions: Sessions, *, chat: bool) -> None:
        self.studio, self.sessions, self.chat = studio, sessions, chat

    # -- session

    async def session(self, request: Request) -> Response:
        """`GET /studio/api/session`."""
        settings, service = self.studio.settings, self.studio.service is not None
        return JsonAnswer({
            "ok": True, "version": metadata.version("luthier"), "runs_folder": settings.runs.name,
            "root": settings.root.resolve().name,
            "features": {"jobs": service, "chat": self.chat, "upload": service},
            "cli": {"program": "luthier"},
        })  # fmt: skip

    async def end(self, request: Request) -> Response:
        """`POST /studio/api/session/end`."""
        self.sessions.end(cookie_of(request.headers.get("cookie", "")))
        answer = Response(status_code=204)
        answer.delete_cookie("luthier_studio", path="/", httponly=True, samesite="strict")
        return answer

    # -- recipes

    async def schema(self, request: Request) -> Response:
        """`GET /studio/api/schema`."""
        from luthier.recipe.json_schema import json_schema

        return JsonAnswer(await asyncio.to_thread(json_schema))

    async def starters(self, request: Request) -> Response:
        """`GET /studio/api/recipe/starters`."""
        return JsonAnswer(await asyncio.to_thread(starters, self.studio.settings.root))

    async def fresh(self, request: Request) -> Response:
        """`GET /studio/api/recipe/fresh?run=ID` or `?file=PATH`: a recipe for a new run."""
        run, file = (request.query_params.get(name, "") for name in ("run", "file"))
        if bool(run) == bool(file):
            raise RecipeError(code="W103", message="name either `run` or `file`")
        settings = self.studio.settings
        if file:
            return JsonAnswer(await asyncio.to_thread(recipe_of_file, settings, file))
        return JsonAnswer(await asyncio.to_thread(recipe_of_run, settings, self.studio.folder(run)))

    async def check(self, request: Request) -> Response:
        """`POST /studio/api/recipe/check`."""
        body = await body_of(request, {"text": str, "plan": bool})
        text = _recipe(field(body, "text"))

        def look() -> JsonAnswer:
            root = self.studio.settings.root
            found, recipe = check_text(text, root)
            if recipe is not None and body.get("plan", True):
                key = ("plan", hash_json(text))
                found |= self.studio.work.get(key, lambda: planned(recipe, root), what="planning", wait=1.0)
            return JsonAnswer(found)

        return await asyncio.to_thread(look)

    async def edit(self, request: Request) -> Response:
        """`POST /studio/api/recipe/edit`."""
        body = await body_of(request, {"text": str, "changes": list})
        text, changes = _recipe(field(body, "text")), field(body, "changes")
        if len(changes) > 200 or not all(isinstance(change, dict) for change in changes):
            raise RecipeError(code="W103", message="changes: at most 200 objects with `key` and `value` or `remove`")
        return JsonAnswer({"text": await asyncio.to_thread(edit_text, text, changes)})

    async def start(self, request: Request) -> Response:
        """`POST /studio/api/recipe/start`."""
        body = await body_of(request, {"text": str, "name": (str, type(None))})
        text = _recipe(field(body, "text"))

        def begin() -> JsonAnswer:
            found = start_run(self.studio.index, text, body.get("name"))
            return JsonAnswer({"run": None, "job": None, **found}, 201)

        return await asyncio.to_thread(begin)

    # -- comparisons

    def _compared(self, request: Request) -> tuple[Compared, list[str]]:
        idents = list(filter(None, request.query_params.get("runs", "").split(",")))
        if not 2 <= len(idents) <= MOST or len(set(idents)) != len(idents):
            raise RecipeError(code="W103", message=f"runs: two to {MOST} different ids with commas; got {len(idents)}")
        folders = [self.studio.folder(ident) for ident in idents]
        stamps = [signature(str(folder)) for folder in folders]
        scores = [file.stat().st_mtime_ns for folder in folders for file in sorted((folder / "eval").glob("*.json"))]
        key = ("compare", hash_json([idents, stamps, scores]))
        return self.studio.work.get(key, lambda: Compared.of(folders), what="paired tests", wait=1.0), idents

    async def compare(self, request: Request) -> Response:
        """`GET /studio/api/compare`."""

        def look() -> JsonAnswer:
            found, idents = self._compared(request)
            lines = [self.studio.index.one(ident) for ident in idents]
            return JsonAnswer(compared(found, lines, [self.studio.folder(ident) for ident in idents]))

        return await asyncio.to_thread(look)

    async def compare_rows(self, request: Request) -> Response:
        """`GET /studio/api/compare/rows`."""
        query = request.query_params
        offset, limit = page_of(query)

        def look() -> JsonAnswer:
            found, _ = self._compared(request)
            return JsonAnswer(compared_rows(
                found, word(query, "task"), offset=offset, limit=limit, sort=word(query, "sort", "change"),
                only=word(query, "only", "changed"),
            ))  # fmt: skip

        return await asyncio.to_thread(look)

    # -- playground

    async def models(self, request: Request) -> Response:
        """`GET /studio/api/models`."""
        limit = number(request.query_params, "limit", 200, least=1, most=500)
        q = word(request.query_params, "q")
        return JsonAnswer(await asyncio.to_thread(lambda: known_models(self.studio, q=q, limit=limit)))

    async def render(self, request: Request) -> Response:
        """`POST /studio/api/render`."""
        body = await body_of(request, {"model": str, "messages": list, "tools": (list, type(None))})
        messages = field(body, "messages")
        if not 0 < len(messages) <= _MESSAGES or not all(_is_message(message) for message in messages):
            raise RecipeError(code="W103", message=f"messages: 1 to {_MESSAGES:,} objects with role and content")
        name = field(body, "model")

        def look() -> JsonAnswer:
            return JsonAnswer(
                rendered(self.studio, named_model(self.studio, name), messages, body.get("tools") or None)
            )

        return await asyncio.to_thread(look)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str | list | None)
    )


def _recipe(text: str) -> str:
    if len(text.encode("utf-8", "replace")) > _RECIPE:
        raise RecipeError(code="W103", message="a recipe is at most 1 MiB of text")
    return text
