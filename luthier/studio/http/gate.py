"""What stands before everything: addresses, session, proof that a write comes from our own page, headers of answers.

Pages and their scripts hold nothing, so they are open; every route with data wants the session's cookie, or a key of
the API with the scope `admin`. What the cookie opens is opened for the routes of the API as well: the gate puts the
studio's own word into the request, and the guard of the API knows it (`luthier.api.guard.Sessions`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.api.bodies import Body
from luthier.api.origins import check_addresses
from luthier.api.settings import ServerSection
from luthier.serve.http.errors import ApiError
from luthier.studio.http.errors import StudioError
from luthier.studio.http.session import Sessions, cookie_of

__all__ = ["CSRF", "POLICY", "Gate"]

CSRF = "x-luthier-studio"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types svelte-trusted-html 'allow-duplicates'"
)
_HEADERS = {
    b"content-security-policy": POLICY.encode("ascii"),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=(), payment=()",
}
_SAFE = ("GET", "HEAD")
_BASE = "/studio"
_OPEN_LINK = "open the link that `luthier studio` printed; it works once, a new start prints a new one"

KeyCheck = Callable[[str, str], Awaitable[bool]]
"""(key, address) -> whether it is a key with the scope `admin`; raises `ApiError` for too many wrong ones."""


class Gate:
    """ASGI: the studio's own paths go to `studio`, all others to `other`."""

    def __init__(
        self, studio: ASGIApp, other: ASGIApp, *, sessions: Sessions, settings: ServerSection, key_is_admin: KeyCheck
    ) -> None:  # fmt: skip
        self.studio, self.other = studio, other
        self.sessions, self.settings, self.key_is_admin = sessions, settings, key_is_admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with an error."""
        if scope["type"] != "http":
            await self.studio(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        own = path == "/" or path == _BASE or path.startswith(f"{_BASE}/")
        cookie = self.sessions.knows(cookie_of(headers.get("cookie", "")))
        try:
            if own:
                body = Body(receive, _with_headers(send), headers, limit=self.settings.max_body_bytes,
                            idle_seconds=self.settings.body_idle_seconds)  # fmt: skip
                receive, send = body.receive, body.send
                check_addresses(headers, self.settings)
                await self._admit(scope, headers, cookie=cookie)
            elif cookie and scope["method"] not in _SAFE:
                _from_our_page(headers)
        except ApiError as error:
            await _told(error).send(scope, receive, send)
            return
        scope["luthier.session"] = cookie
        await (self.studio if own else self.other)(scope, receive, send)

    async def _admit(self, scope: Scope, headers: dict[str, str], *, cookie: bool) -> None:
        if not scope["path"].startswith(f"{_BASE}/api/"):
            if scope["method"] not in _SAFE:
                raise StudioError(405, f"{scope['method']} is not allowed here", code="W103")
            return
        if cookie:
            if scope["method"] not in _SAFE:
                _from_our_page(headers)
        elif not await self._has_key(scope, headers):
            raise StudioError(401, "this needs the studio's session", code="W101", hint=_OPEN_LINK)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "0")
        sends = scope["method"] not in _SAFE and (length != "0" or "transfer-encoding" in headers)
        if sends and kind != "application/json":
            raise StudioError(415, f"the body must be application/json, not {kind[:60] or 'of no type'}", code="W103")
        if not length.isdigit() or len(length) > 15 or int(length) > self.settings.max_body_bytes:
            raise StudioError(413, f"the body is larger than {self.settings.max_body_bytes:,} bytes", code="W103")

    async def _has_key(self, scope: Scope, headers: dict[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return False
        client = scope.get("client")
        return await self.key_is_admin(key.strip(), str(client[0]) if client else "unknown")


def _from_our_page(headers: dict[str, str]) -> None:
    """A header that no form can send, and no script of another site without being asked about it first."""
    site = headers.get("sec-fetch-site", "same-origin")
    if headers.get(CSRF) != "1" or site not in ("same-origin", "none"):
        raise StudioError(
            403, "a write must come from the studio's own page", code="W102", hint="header X-Luthier-Studio: 1"
        )


def _told(error: ApiError) -> ApiError:
    """In the studio's shape."""
    if isinstance(error, StudioError):
        return error
    code = "W102" if error.status == 403 else error.code or "W103"
    told = StudioError(error.status, error.message, code=code)
    told.headers = error.headers
    return told


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            names = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in _HEADERS.items() if name not in names]
            message = {**message, "headers": headers}
        await send(message)

    return sending
