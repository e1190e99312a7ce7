"""A chat server on this machine that answers, and misbehaves, by script."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler", dict[str, Any]], None]


def answer(text: str, *, prompt_tokens: int = 10, completion_tokens: int = 5) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: ScriptedServer = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append({"body": body, "headers": dict(self.headers), "path": self.path, "at": time.monotonic()})
            act = server.script.pop(0) if server.script else server.always
        act(self, body)

    def send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class ScriptedServer:
    """`script`: what to do with the next requests, in order of arrival; then `always`."""

    def __init__(self, *, script: list[Act] | None = None, always: Act | None = None) -> None:
        self.script = list(script or [])
        self.always = always or says(lambda body: "echo: " + body["messages"][-1]["content"])
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"


def says(text: str | Callable[[dict[str, Any]], str], **counts: int) -> Act:
    return lambda handler, body: handler.send(200, answer(text if isinstance(text, str) else text(body), **counts))


def status(code: int, message: str = "no", *, error_code: str | None = None, **headers: str) -> Act:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda handler, _: handler.send(code, {"error": {"message": message, "code": error_code}}, named)


def raw(data: bytes, code: int = 200) -> Act:
    return lambda handler, _: handler.send(code, data)


def slow(seconds: float) -> Act:
    def act(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):  # nobody waits any longer
            says("late")(handler, body)

    return act


def drip(pause: float, blocks: int = 100) -> Act:
    """A byte now and then: no single read ever times out."""

    def act(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(blocks))
        handler.end_headers()
        try:
            for _ in range(blocks):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            handler.close_connection = True

    return act


def reset(handler: Handler, _: dict[str, Any]) -> None:
    """A TCP reset instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def break_off(handler: Handler, body: dict[str, Any]) -> None:
    """Half of the body that was announced."""
    data = json.dumps(answer("never whole")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.close_connection = True


def streams(
    *pieces: str, end: bool = True, error: str | None = None, before: Callable[[int], object] = lambda event: None
) -> Act:
    """Server-sent events: a role, one event a piece, an error or the end; `before` gets the number of each."""

    def act(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Connection", "close")
        handler.end_headers()
        events: list[Any] = [{"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}]
        events += [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
        events += [{"error": {"message": error}}] if error else []
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}] if end else []
        for number, event in enumerate(events):
            before(number)
            data = json.dumps(event, ensure_ascii=False)
            handler.wfile.write(f": still here\n\ndata: {data}\n\n".encode())
            handler.wfile.flush()
        if end:
            handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    return act
