"""`/v1/fine_tuning/alpha/graders`: validate a grader, run it on one sample."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.api.asking import no_query
from luthier.api.caller import Caller, caller_of
from luthier.api.internal import InternalChat
from luthier.api.problems import answering
from luthier.api.settings import ServerSection
from luthier.scoring.graders import run_grader, validate_grader
from luthier.scoring.graders.grade import models_of
from luthier.scoring.graders.models import Asked
from luthier.scoring.graders.sandbox import Limits
from luthier.scoring.graders.shapes import AnyGrader, MultiGrader, PythonGrader, parse_grader
from luthier.serve.http.errors import ApiError, invalid, unsupported
from luthier.serve.http.schema import read_object

__all__ = ["GraderRoutes"]


class GraderRoutes:
    """The routes. One grader runs at a time for each of `settings.parallel_graders`."""

    def __init__(self, settings: ServerSection, chat: InternalChat) -> None:
        self.settings, self.chat = settings, chat
        self._places = asyncio.Semaphore(settings.parallel_graders)

    @answering
    async def validate(self, request: Request) -> Response:
        """`POST .../validate`."""
        no_query(request)
        body = _known(await read_object(request), {"grader"})
        return JSONResponse(await asyncio.to_thread(validate_grader, body["grader"]))

    @answering
    async def run(self, request: Request) -> Response:
        """`POST .../run`."""
        no_query(request)
        body = _known(await read_object(request), {"grader", "model_sample", "item"})
        sample, item = body.get("model_sample"), body.get("item", {})
        if not isinstance(sample, str):
            raise invalid("model_sample", "`model_sample` must be a text")
        if not isinstance(item, dict):
            raise invalid("item", "`item` must be an object")
        grader = await asyncio.to_thread(parse_grader, body["grader"])
        self._check_allowed(grader)
        caller = caller_of(request)
        for name in models_of(grader):
            await self.chat.check(name, caller)
        ask = self._ask(caller)
        async with self._places:
            grade = await asyncio.to_thread(
                run_grader, grader, item=item, model_sample=sample, ask=ask,
                limits=Limits(seconds=self.settings.grader_seconds),
            )  # fmt: skip
        return JSONResponse(grade.to_json())

    def _check_allowed(self, grader: AnyGrader) -> None:
        parts = list(grader.graders.values()) if isinstance(grader, MultiGrader) else [grader]
        if not self.settings.python_graders and any(isinstance(part, PythonGrader) for part in parts):
            raise ApiError(
                403, "`python` graders run code on this machine and are off (`python_graders: true` allows them)",
                param="grader.type", code="python_graders_off",
            )  # fmt: skip

    def _ask(self, caller: Caller) -> Any:
        loop = asyncio.get_running_loop()

        def ask(model: str, messages: list[dict[str, Any]], sampling: Mapping[str, Any]) -> Asked:
            work = self.chat.ask(model, messages, sampling, caller)
            return asyncio.run_coroutine_threadsafe(work, loop).result(self.settings.request_seconds + 60)

        return ask


def _known(body: dict[str, Any], names: set[str]) -> dict[str, Any]:
    for name in body:
        if name not in names:
            raise unsupported(name[:80])
    if "grader" not in body:
        raise invalid("grader", "`grader` is missing", code="missing_required_parameter")
    return body
