"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with the status its client expects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.runtime.errors import LuthierError

__all__ = ["ApiError", "error_body", "from_luthier", "handlers", "invalid", "unsupported"]

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return error_body(self.status, self.message, param=self.param, code=self.code)

    def response(self) -> Response:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)

    async def send(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer from a middleware."""
        await self.response()(scope, receive, send)


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, why: str = "is not supported by this server") -> ApiError:
    """A 400 for a field that would otherwise be ignored."""
    return ApiError(400, f"`{param}` {why}", param=param, code="unsupported_parameter")


def from_luthier(error: LuthierError, *, status: int = 400, param: str | None = None) -> ApiError:
    """An error of Luthier as the first of its problems."""
    problem = error.problems[0]
    hint = f" ({problem.hint})" if problem.hint else ""
    return ApiError(status, f"{problem.message}{hint}", param=param, code=problem.code)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    words = {404: f"no such route: {request.method} {request.url.path}", 405: f"{request.method} is not allowed here"}
    body = error_body(error.status_code, words.get(error.status_code, error.detail), code=None)
    return Response(json.dumps(body), error.status_code, headers=headers, media_type="application/json")


async def _fault(request: Request, error: Exception) -> Response:
    # The trace goes to the log by the server; the client learns nothing of the machine.
    return JSONResponse(error_body(500, "the server met an unexpected fault"), 500)


handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _fault}
