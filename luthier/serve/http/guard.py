"""What stands before every route: key, addresses a browser could be tricked with, size of the body.

Without a key a server listens on loopback only. Then a page in the user's browser could still reach
it, under its own name (`Origin`) or under a name it points at 127.0.0.1 (`Host`). Both are refused.
"""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serve.http.errors import ApiError
from luthier.serve.settings import ServeSettings, is_loopback

__all__ = ["Guard", "is_admin"]

OPEN_PATHS = ("/health",)


class Guard:
    """ASGI middleware that refuses before anything is read."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
        except ApiError as error:
            await error.send(scope, receive, send)
            return
        scope["luthier.admin"] = self._admin(scope, headers)
        await self.app(scope, _limited(receive, self.settings.max_body_bytes), send)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        settings = self.settings
        if settings.api_key is None:
            host, origin = _host_of(f"//{headers.get('host', '')}"), _host_of(headers.get("origin", ""))
            if not is_loopback(host) or ("origin" in headers and not is_loopback(origin)):
                raise ApiError(403, "without an API key only requests from this machine itself are answered")
        elif scope["path"] not in OPEN_PATHS:
            keys = [key for key in (settings.api_key, settings.admin_key) if key is not None]
            if not any(self._has(headers, key) for key in keys):
                raise ApiError(
                    401, "missing or wrong API key: send `Authorization: Bearer KEY`", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > settings.max_body_bytes:
            raise _too_large(settings.max_body_bytes)

    def _admin(self, scope: Scope, headers: dict[str, str]) -> bool:
        if self.settings.admin_key is not None:
            return self._has(headers, self.settings.admin_key)
        client = scope.get("client")
        return client is not None and is_loopback(str(client[0]))

    @staticmethod
    def _has(headers: dict[str, str], key: str) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # The time this takes does not depend on where the keys differ.
        return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), key.encode())


def is_admin(scope: MutableMapping[str, Any]) -> None:
    """Let only those pass who may load and drop models.

    Raises:
        ApiError: 403.
    """
    if not scope.get("luthier.admin"):
        raise ApiError(403, "this needs the admin key, or a request from the machine itself", code="admin_only")


def _host_of(address: str) -> str:
    """The host in an address; nothing for one that is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")


def _limited(receive: Receive, limit: int) -> Receive:
    """Count the bytes as they come: a chunked body states no length."""
    read = 0

    async def counting() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise _too_large(limit)
        return message

    return counting
