"""The built pages: index.html for every path of a page, files with a hash in their name for ever."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from luthier.studio.http.errors import StudioError
from luthier.studio.http.session import COOKIE, Sessions

__all__ = ["PageRoutes"]

_HASHED = re.compile(r"[A-Za-z0-9_.-]+-[A-Za-z0-9_-]{8,}\.[a-z0-9.]+\Z")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2",
          ".json": "application/json", ".html": "text/html", ".webmanifest": "application/manifest+json"}  # fmt: skip
_FOREVER = "public, max-age=31536000, immutable"
_NO_PAGES = (
    "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Luthier studio</title></head><body>"
    "<h1>Luthier studio</h1><p>The pages are not built in this checkout; the JSON under /studio/api works. "
    "A wheel has them built in.</p></body></html>"
)
_USED = (
    "This link was used, or is a day old, or the studio was started again since.\n"
    "`luthier studio` prints a new one when it starts.\n"
)


class PageRoutes:
    """Pages, files, and the way in."""

    def __init__(self, folder: Path, sessions: Sessions, *, secure: bool = False) -> None:
        self.folder, self.sessions, self.secure = folder, sessions, secure

    async def root(self, request: Request) -> Response:
        """`/`."""
        return RedirectResponse("/studio/", 303)

    async def page(self, request: Request) -> Response:
        """Any page: which one it is, the script decides."""
        file = self.folder / "index.html"
        headers = {"Cache-Control": "no-cache"}
        if not file.is_file():
            return HTMLResponse(_NO_PAGES, headers=headers)
        return HTMLResponse(file.read_bytes(), headers=headers)

    async def file(self, request: Request) -> Response:
        """`/studio/assets/NAME` and the few files beside index.html."""
        name, sub = request.path_params["name"], request.path_params.get("sub", "")
        if not _FILE.match(name) or (sub and sub != "assets"):
            raise StudioError(404, "there is no such file", code="W106")
        path = self.folder / sub / name
        if path.is_symlink() or not path.is_file():
            raise StudioError(404, "there is no such file", code="W106")
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        caching = _FOREVER if sub and _HASHED.match(name) else "no-cache"
        return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": caching})

    async def asset(self, request: Request) -> Response:
        """A file in `assets`."""
        request.path_params["sub"] = "assets"
        return await self.file(request)

    async def login(self, request: Request) -> Response:
        """The link that works once: a cookie, and on to the pages without a word in the address."""
        cookie = self.sessions.enter(request.query_params.get("once", "")[:200])
        if cookie is None:
            return PlainTextResponse(_USED, 410, headers={"Cache-Control": "no-store"})
        answer = RedirectResponse("/studio/", 303, headers={"Cache-Control": "no-store"})
        answer.set_cookie(
            COOKIE, cookie, max_age=30 * 24 * 3600, path="/", httponly=True, samesite="strict", secure=self.secure
        )
        return answer
