"""A studio in one process, asked without a socket."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.api.settings import ServerSection
from luthier.studio.app import studio_app
from luthier.studio.context import Studio
from luthier.studio.http.session import COOKIE, Sessions
from luthier.studio.settings import StudioSettings

STAND_IN = Path(__file__).parent / "stand_in.py"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class Desk:
    """A studio over a folder, with a session."""

    def __init__(self, root: Path, *, static: Path | None = None, other: Any = None, key_is_admin: Any = None) -> None:
        (root / "runs").mkdir(exist_ok=True)
        self.settings = StudioSettings(
            runs=root / "runs", root=root, program=(sys.executable, str(STAND_IN)), poll_seconds=0.02, scan_seconds=0.0
        )
        self.studio = Studio.open(self.settings)
        self.sessions = Sessions()
        self.app = studio_app(
            self.studio,
            ServerSection(),
            self.sessions,
            other=other,
            key_is_admin=key_is_admin,
            static=static or root / "no pages",
        )
        self.cookie = self.sessions.enter(self.sessions.new_link())

    def close(self) -> None:
        self.studio.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        session: bool = True,
    ) -> Answer:
        """One request; bodies are sent as our page sends them."""
        given = {"host": "127.0.0.1:7860"}
        if session:
            given["cookie"] = f"{COOKIE}={self.cookie}"
        data = b""
        if method != "GET":
            given["x-luthier-studio"] = "1"
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given |= {"content-type": "application/json", "content-length": str(len(data))}
        given |= dict(headers or {})
        return asyncio.run(call(self.app, method, path, {k: v for k, v in given.items() if v != ""}, data))

    def until(self, path: str, **keys: Any) -> Answer:
        """Ask until the work is done."""
        for _ in range(600):
            answer = self.ask(path, **keys)
            if answer.status != 202:
                return answer
        raise AssertionError(f"{path} is never done")


async def call(app: Any, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
    from urllib.parse import unquote

    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 7_860),
    }
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))
