"""Errors of the studio: OpenAI's shape, with every problem beside the first."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from luthier.runtime.errors import EnvironmentProblem, LuthierError, OutOfMemory, Problem, RunFailed
from luthier.runtime.scrub import scrub
from luthier.serve.http.errors import ApiError
from luthier.studio.clean import clean, dumps
from luthier.studio.recipes.check import problem_record
from luthier.studio.work import Unfinished

__all__ = ["JsonAnswer", "StudioError", "answering", "failed"]

_log = logging.getLogger("luthier.studio")
_STATUS = {
    "W101": 401, "W102": 403, "W104": 404, "W106": 404, "W131": 404, "W132": 404, "W120": 409, "W121": 409, "W123": 409,
}  # fmt: skip
_MOST = 200

Handler = Callable[[Request], Awaitable[Response]]


class JsonAnswer(Response):
    """JSON in which every number is finite."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200) -> None:
        super().__init__(dumps(content).encode("utf-8"), status_code, headers={"Cache-Control": "no-store"})


class StudioError(ApiError):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, *, code: str, hint: str | None = None, problems: Sequence[Problem] = (),
        param: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, code=code, param=param)
        self.hint, self.problems = hint, problems

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        found = super().body()
        found["error"] |= {"hint": self.hint, "problems": [problem_record(problem) for problem in self.problems]}
        value: dict[str, Any] = clean(found)
        return value


def failed(error: LuthierError, places: Sequence[Path]) -> StudioError:
    """A Luthier error as an answer; folders of this machine and secrets are taken out of its text.

    Args:
        error: With one problem or many.
        places: Folders whose paths are left out of messages.
    """
    problems = [_shown(problem, places) for problem in error.problems[:_MOST]]
    first = problems[0]
    status = getattr(error, "status", None) or _STATUS.get(first.code)
    if status is None:
        status = (
            503 if isinstance(error, EnvironmentProblem | OutOfMemory) else 500 if isinstance(error, RunFailed) else 400
        )
    if status == 500:
        status = 422  # a damaged file of a run is no fault of the server
    return StudioError(status, first.message, code=first.code, hint=first.hint, problems=problems)


def _shown(problem: Problem, places: Sequence[Path]) -> Problem:
    def short(text: str | None) -> str | None:
        if text is None:
            return None
        for place in places:
            text = text.replace(f"{place}/", "")
        return scrub(text)

    return replace(
        problem, message=short(problem.message) or "", file=short(problem.file), hint=short(problem.hint),
        source=problem.source,
    )  # fmt: skip


def answering(handler: Handler, places: Sequence[Path]) -> Handler:
    """A handler whose errors are answers, and whose unfinished work is a 202."""

    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except Unfinished as unfinished:
            return JsonAnswer(unfinished.to_json(), 202)
        except ApiError as error:
            return _answer(error)
        except LuthierError as error:
            return _answer(failed(error, places))
        except OSError as error:
            _log.warning("%s: %s", request.url.path, error)
            return _answer(StudioError(503, f"the disk: {error.strerror or 'unknown fault'}", code="W112"))

    return wrapped


def _answer(error: ApiError) -> Response:
    body = error.body()
    body["error"].setdefault("hint", None)
    body["error"].setdefault("problems", [])
    answer = JsonAnswer(body, error.status)
    answer.headers.update(error.headers)
    return answer
