"""What stands before every route: addresses, key, scope, rate, type and size of the body; audit and headers after it.

Nothing of a request's body is read before all of this has passed. Without keys the server answers only on
loopback, and only requests that name it as loopback: a page in the user's browser reaches it neither under its
own name (`Origin`) nor under a name that it points at 127.0.0.1 (`Host`).
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.api.bodies import Body, too_large
from luthier.api.caller import LOCAL, RULES, Caller, Rule, rule_for, scopes_for, tightest
from luthier.api.origins import check_addresses
from luthier.api.problems import NO_RETRY, as_api_error
from luthier.api.settings import ServiceSettings
from luthier.jobs.errors import TooMany
from luthier.jobs.store import Store
from luthier.jobs.throttle import RequestRate, WrongKeys
from luthier.runtime.scrub import scrub
from luthier.serve.http.errors import ApiError

__all__ = ["Guard", "Sessions"]

_log = logging.getLogger("luthier.api")
OPEN_PATHS = ("/health",)
SAFE = ("GET", "HEAD", "OPTIONS")
MULTIPART = ("/v1/files", "/parts")
MAX_HEADER_BYTES, MAX_URL_BYTES = 32 << 10, 8 << 10
AROUND = 64 << 10
"""What may stand around a file in its body."""
SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}

Sessions = Callable[[dict[str, str]], Caller | None]
"""From headers to a caller, for pages that sign in with a cookie."""


class Guard:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, *, store: Store, settings: ServiceSettings, rules: Sequence[Rule] = RULES,
        sessions: Sessions | None = None,
    ) -> None:  # fmt: skip
        self.app, self.store, self.rules, self.sessions = app, store, rules, sessions
        self.server, self.limits = settings.server, settings.limits
        self.wrong_keys = WrongKeys(self.server.wrong_keys_per_minute + 1)
        self.rate = RequestRate()
        self._has_keys = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        body = Body(receive, send, _raw(scope), limit=self._limit(scope), idle_seconds=self.server.body_idle_seconds)
        try:
            caller = await self._admit(scope)
        except ApiError as error:
            await error.send(scope, body.receive, body.send)
            return
        scope["luthier.caller"], scope["luthier.admin"] = caller, caller.admin
        rule = rule_for(scope["path"], self.rules)
        writes = scope["method"] not in SAFE and rule.writes
        answer = self._audited(scope, caller, body.send) if writes else body.send
        try:
            await self.app(scope, body.receive, answer)
        except ClientDisconnect:
            return
        except Exception:  # noqa: BLE001 - the last line of defence: the client learns nothing of the machine
            _log.error("%s %s\n%s", scope["method"], scope["path"], scrub(traceback.format_exc()))
            if not body.answered:
                await ApiError(500, "the server met an unexpected fault").send(scope, body.receive, answer)

    # --- before ---------------------------------------------------------------------------------------------------

    async def _admit(self, scope: Scope) -> Caller:
        headers = _headers(scope)
        check_addresses(headers, self.server)
        caller = await self._caller(scope, headers)
        if scope["path"] in OPEN_PATHS:
            return caller or Caller(owner="", scopes=frozenset())
        assert caller is not None
        needed = scopes_for(scope["path"], scope["method"], self.rules)
        if not caller.may(needed):
            names = " or ".join(sorted(needed))
            raise ApiError(403, f"this key lacks the scope it takes: {names}", code="missing_scope")
        per_minute = tightest(caller.limits.get("requests_per_minute"), self.limits.requests_per_minute)
        try:
            self.rate.take(caller.key_id or "", per_minute)
        except TooMany as error:
            raise as_api_error(error) from error
        self._check_body(scope, headers)
        return caller

    async def _caller(self, scope: Scope, headers: dict[str, str]) -> Caller | None:
        """Who asks; None only where nobody needs to be known.

        Raises:
            ApiError: 401, or 429 after too many wrong keys.
        """
        if not await self._keyed():
            if not self.server.loopback:
                raise ApiError(401, "this server has no keys yet: `luthier api keys new`", code="invalid_api_key")
            return LOCAL
        if self.sessions is not None and (caller := self.sessions(headers)) is not None:
            return caller
        scheme, _, text = headers.get("authorization", "").partition(" ")
        key = text.strip() if scheme.lower() == "bearer" else ""
        if scope["path"] in OPEN_PATHS and not key:
            return None
        address = _address(scope)
        record = await asyncio.to_thread(self.store.key_of, key) if key else None
        if record is not None:
            return Caller(owner=record.owner, scopes=record.scopes, key_id=record.id, limits=record.limits)
        if key:
            try:
                self.wrong_keys.wrong(address)
            except TooMany as error:
                refused = as_api_error(error)
                refused.headers |= NO_RETRY
                raise refused from error
            subject = f"{scope['method']} {scope['path'][:200]}"
            await asyncio.to_thread(self.store.audit, "", "wrong key", subject, "401", address)
        if scope["path"] in OPEN_PATHS:
            return None
        raise ApiError(
            401, "missing or wrong API key: send `Authorization: Bearer KEY`", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip

    async def _keyed(self) -> bool:
        """Whether there are keys, or ever were: revoking the last one does not open the server."""
        if not self._has_keys:
            self._has_keys = bool(await asyncio.to_thread(self.store.keys))
        return self._has_keys

    def _limit(self, scope: Scope) -> int:
        return self.limits.file_bytes + AROUND if _takes_files(scope["path"]) else self.server.max_body_bytes

    def _check_body(self, scope: Scope, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "0")
        limit = self._limit(scope)
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise too_large(limit)
        if scope["method"] in SAFE or (length == "0" and "transfer-encoding" not in headers):
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = "multipart/form-data" if _takes_files(scope["path"]) else "application/json"
        if kind != wanted:
            raise ApiError(
                415, f"the body must be {wanted}, not {kind[:80] or 'of no type'}", code="unsupported_media_type"
            )

    # --- after ----------------------------------------------------------------------------------------------------

    def _audited(self, scope: Scope, caller: Caller, send: Send) -> Send:
        async def auditing(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "no such route")
                named = scope.get("luthier.subject") or ", ".join(map(str, scope.get("path_params", {}).values()))
                subject = f"{named[:300]} by {caller.key_id}" if caller.key_id else named[:300]
                action, outcome = f"{scope['method']} {route}", str(message["status"])
                await asyncio.to_thread(self.store.audit, caller.owner, action, subject, outcome, _address(scope))
            await send(message)

        return auditing


def _raw(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _headers(scope: Scope) -> dict[str, str]:
    """Names in lower case.

    Raises:
        ApiError: 431, 414, or 400 for a header that must not come twice.
    """
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise ApiError(431, f"more than {MAX_HEADER_BYTES:,} bytes of headers", code="headers_too_large")
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MAX_URL_BYTES:
        raise ApiError(414, f"the address is longer than {MAX_URL_BYTES:,} bytes", code="url_too_long")
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in found and name in ("authorization", "host", "origin", "content-type", "content-length"):
            raise ApiError(400, f"the header {name} stands twice", code="invalid_header")
        found[name] = value.decode("latin-1")
    return found


def _takes_files(path: str) -> bool:
    return path == MULTIPART[0] or (path.startswith("/v1/uploads/") and path.endswith(MULTIPART[1]))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _with_headers(send: Send) -> Send:
    """Headers that browsers heed, where a route has set none of its own; no retries of what cannot change."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            names = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SECURITY_HEADERS.items() if name not in names]
            if message["status"] in (409, 501) and b"x-should-retry" not in names:
                headers.append((b"x-should-retry", b"false"))
            message = {**message, "headers": headers}
        await send(message)

    return sending
