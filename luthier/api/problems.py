"""Errors of the layers below as answers in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from luthier.jobs.errors import JobProblem, ServiceError
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, EnvironmentProblem, LuthierError, OutOfMemory, RecipeError
from luthier.runtime.scrub import scrub
from luthier.serve.http.errors import ApiError

__all__ = ["NO_RETRY", "answering", "as_api_error"]

NO_RETRY = {"x-should-retry": "false"}
"""The official client sends 408, 409, 429 and 5xx twice more unless an answer has this."""
MAX_SHOWN = 20

P = ParamSpec("P")
T = TypeVar("T")


def as_api_error(error: LuthierError) -> ApiError:
    """One answer with every problem of an error; code and field are those of the first.

    Args:
        error: Places of this machine and secrets are taken out of its text.
    """
    problems = list(error.problems[:MAX_SHOWN])
    lines = [f"{one.message} ({one.hint})" if one.hint else one.message for one in problems]
    if len(error.problems) > MAX_SHOWN:
        lines.append(f"and {len(error.problems) - MAX_SHOWN} more")
    first = problems[0]
    param = first.param if isinstance(first, JobProblem) else None
    status = _status(error)
    headers: dict[str, str] = {}
    if status == 409 or status >= 500:
        headers |= NO_RETRY
    if isinstance(error, ServiceError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return ApiError(status, scrub("\n".join(lines)), param=param, code=first.code, headers=headers)


def _status(error: LuthierError) -> int:
    if isinstance(error, ServiceError):
        return error.status
    if isinstance(error, (RecipeError, DataError)):
        return 400
    if isinstance(error, (EnvironmentProblem, OutOfMemory)):
        return 503
    return 500


def answering(handler: Callable[P, Awaitable[Response]]) -> Callable[P, Awaitable[Response]]:
    """A handler whose Luthier errors and full disks become answers.

    Raises:
        ApiError: instead of them.
    """

    @wraps(handler)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return await handler(*args, **kwargs)
        except LuthierError as error:
            answer = as_api_error(error)
            if answer.status >= 500:
                note(f"{_where(args)}: {error.problems[0].message}")
            raise answer from error
        except OSError as error:
            note(f"{_where(args)}: {error}")
            # What is full or missing is told by its kind, never by its path.
            raise ApiError(503, f"the server's disk: {error.strerror or 'unknown fault'}", code="A120") from error

    return wrapped


def _where(args: tuple[Any, ...]) -> str:
    request = next((one for one in args if isinstance(one, Request)), None)
    return "" if request is None else f"{request.method} {request.scope.get('route', request.url).path}"
