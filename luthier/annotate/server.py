"""The page: a server on this machine alone that shows rows and takes decisions. Standard library only.

Against pages of other sites: the address holds a secret; the `Host` must be this server, and what changes something
must come from this very page (`Origin`, `Sec-Fetch-Site`) as JSON. Against what stands in the rows: the page makes text
nodes of it and nothing else, and its policy allows no script but the one file of this server, no image, no form.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from luthier.annotate.record import ACTIONS
from luthier.annotate.session import Desk, Session
from luthier.annotate.terminal import printable, words
from luthier.data.strict_json import JsonError, parse
from luthier.runtime.errors import EnvironmentProblem, LuthierError, RecipeError

__all__ = ["MAX_BODY", "Page", "serve"]

MAX_BODY = 4 * 2**20
"""Longest request, in bytes."""
MAX_ANNOTATORS = 100
_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page:
    """What the page asks and tells, apart from HTTP: one session a name, one thing at a time."""

    def __init__(self, desk: Desk, *, annotator: str = "", skipped_too: bool = False) -> None:
        self.desk, self.annotator, self.skipped_too = desk, annotator, skipped_too
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def state(self, name: str) -> dict[str, Any]:
        """What an annotator sees.

        Raises:
            RecipeError: no name, or too many of them.
        """
        with self._lock:
            return self._state(self._session(name))

    def act(self, asked: Any) -> dict[str, Any]:
        """Do what the page asks for, and say what the annotator sees then.

        Raises:
            LuthierError: it cannot be done; nothing was written.
        """
        if not isinstance(asked, dict):
            raise RecipeError(code="D294", message="expected an object")
        with self._lock:
            session = self._session(asked.get("annotator"))
            said = self._do(session, asked)
            return {**self._state(session), "said": said}

    def _do(self, session: Session, asked: dict[str, Any]) -> str:
        action: Any = asked.get("action")
        item = session.item
        if action == "undo":
            last = session.undo()
            return "nothing to undo" if last is None else f"undone: {last.action}"
        if action in {"back", "forward"}:
            session.move(-1 if action == "back" else 1)
            return ""
        if action == "jump":
            number = asked.get("number")
            if not isinstance(number, int) or isinstance(number, bool):
                raise RecipeError(code="D294", message="jump to which row? A number is needed")
            session.jump(number)
            return ""
        if action == "show_skipped":
            session.skipped_too = True
            session.next()
            return ""
        if action not in ACTIONS or action == "undo":
            raise RecipeError(code="D294", message=f"unknown action {action!r}")
        if item is None or asked.get("hash") != item.hash:
            # Two windows of one annotator: the decision was about another row than the one shown last.
            raise RecipeError(code="D294", message="another window went on to another row; look again")
        edits, text, side = asked.get("edits") or {}, asked.get("text"), asked.get("side")
        if not isinstance(edits, dict) or not all(key.isdigit() and isinstance(own, str) for key, own in edits.items()):
            raise RecipeError(code="D294", message="edits: expected number -> text")
        if not isinstance(text, str | None) or not isinstance(side, str | None):
            raise RecipeError(code="D294", message="text and side: expected text")
        record = session.act(action, side=side, edits={int(key): own for key, own in edits.items()}, text=text)
        return f"{record.action} saved"

    def _session(self, name: Any) -> Session:
        if not isinstance(name, str):
            raise RecipeError(code="D294", message="the name of the annotator is needed")
        name = name.strip()
        if name not in self._sessions:
            if len(self._sessions) >= MAX_ANNOTATORS:
                raise RecipeError(code="D294", message=f"more than {MAX_ANNOTATORS} annotators; start the page again")
            self._sessions[name] = Session(self.desk, name, skipped_too=self.skipped_too)
        return self._sessions[name]

    def _state(self, session: Session) -> dict[str, Any]:
        item, view, standing = session.item, session.view(), session.standing()
        found: dict[str, Any] = {"annotator": session.annotator, "counts": session.counts(), "row": None}
        if item is None or view is None:
            return found
        changed = self.desk.changed.get(item.hash)
        found["row"] = {
            **view.to_json(),
            "hash": item.hash,
            "place": str(item.ref),
            "number": (session.at or 0) + 1,
            "copies": len(self.desk.items.by_hash[item.hash]) - 1,
            "empty": item.empty,
            "changed": None if changed is None else f"{changed.action} by {changed.annotator}",
            "tags": standing.tags,
            "note": standing.note,
            "decision": None if standing.decision is None else words(standing.decision, view),
        }
        return found


def serve(page: Page, *, port: int = 0, token: str | None = None) -> tuple[ThreadingHTTPServer, str]:
    """A server on 127.0.0.1, not yet running (`serve_forever`), and its address with the secret in it.

    Args:
        page: What it shows.
        port: 0 takes a free one.
        token: The secret; None makes one of 128 random bits.

    Raises:
        EnvironmentProblem: the port is taken.
    """
    token = token or secrets.token_urlsafe(16)
    files = resources.files("luthier.annotate")
    texts = {name: ((files / file).read_bytes(), kind) for name, (file, kind) in _FILES.items()}
    handler = type("Handler", (_Handler,), {"page": page, "token": token, "files": texts})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        message = f"cannot listen on 127.0.0.1:{port}: {error.strerror}"
        raise EnvironmentProblem(code="D299", message=message, hint="another --port, or 0 for a free one") from error
    server.daemon_threads = True
    return server, f"http://127.0.0.1:{server.server_address[1]}/{token}/"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        self.status, self.message = status, message


class _Handler(BaseHTTPRequestHandler):
    page: Page
    token: str
    files: dict[str, tuple[bytes, str]]
    timeout = 30
    server_version, sys_version = "luthier", ""

    def do_GET(self) -> None:
        """The page, its style and script, and what an annotator sees."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A decision."""
        self._answer(self._post)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Addresses hold the secret: nothing is logged."""

    def _get(self) -> tuple[bytes, str]:
        path = self._path()
        if path in self.files:
            return self.files[path]
        if path == "state":
            names = parse_qs(urlsplit(self.path).query).get("annotator", [self.page.annotator])
            return _json(self.page.state(names[0]))
        if path == "start":
            return _json({"annotator": self.page.annotator, "rows": len(self.page.desk.places)})
        raise _Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self) -> tuple[bytes, str]:
        origin = f"http://{self.headers.get('Host')}"
        if self.headers.get("Origin") != origin or self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise _Refused(HTTPStatus.FORBIDDEN, "not from this page")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON is needed")
        if self._path() != "act":
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
        if int(length) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY:,} bytes")
        try:
            asked = parse(self.rfile.read(int(length)).decode("utf-8"))
        except (JsonError, UnicodeDecodeError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"no JSON: {error}") from error
        return _json(self.page.act(asked))

    def _path(self) -> str:
        """The path behind the secret; the host is checked first."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in {f"127.0.0.1:{port}", f"localhost:{port}"}:
            raise _Refused(HTTPStatus.FORBIDDEN, "another host")
        token, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode("utf-8"), self.token.encode("utf-8")):
            raise _Refused(HTTPStatus.FORBIDDEN, "the address lacks the secret: open the one that luthier printed")
        return rest

    def _answer(self, make: Any) -> None:
        status = HTTPStatus.OK
        try:
            body, kind = make()
        except _Refused as refused:
            status, (body, kind) = refused.status, _json({"error": refused.message})
            self.close_connection = True
        except LuthierError as error:
            told = "; ".join(
                problem.message + (f" ({problem.hint})" if problem.hint else "") for problem in error.problems
            )
            full = error.exit_code == 4
            status = HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.BAD_REQUEST
            body, kind = _json({"error": told})
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(_printable(value), ensure_ascii=False).encode("utf-8"), "application/json"


def _printable(value: Any) -> Any:
    """Characters that cannot be seen, by number; not in texts to edit, which come back."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "slots" else _printable(item) for key, item in value.items()}
    return value
