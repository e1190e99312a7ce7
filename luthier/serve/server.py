"""Run the application under uvicorn: bind first, say where, serve, and let streams finish at the end."""

from __future__ import annotations

import importlib.util
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

from luthier.runtime.errors import EnvironmentProblem
from luthier.serve.settings import ServeSettings

__all__ = ["make_server", "needed_packages", "run_server"]


def needed_packages() -> None:
    """The server's libraries are an extra.

    Raises:
        EnvironmentProblem: they are missing.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            code="S610", message=f"serving needs {' and '.join(missing)}", hint="pip install 'luthier[serve]'"
        )


def make_server(app: Any, settings: ServeSettings, *, ready: Callable[[str], None]) -> tuple[Any, socket.socket]:
    """A uvicorn server and the socket it will listen on, bound already: `server.run(sockets=[socket])`.

    Raises:
        EnvironmentProblem: the address cannot be used.
    """
    import uvicorn

    from luthier.serve.connections import PatientProtocol

    listening = _listen(settings)
    host, port = listening.getsockname()[:2]

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if not self.should_exit:
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", server_header=False, ws="none",
        http=PatientProtocol, timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )  # fmt: skip
    return Server(config), listening


def run_server(app: Any, settings: ServeSettings, *, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes; answers under way then have `drain_seconds` to finish.

    Args:
        app: From `http.app.app`.
        settings: Address and limits.
        ready: Called with the URL once connections are accepted.

    Raises:
        EnvironmentProblem: the address cannot be used.
    """
    server, listening = make_server(app, settings, ready=ready)
    # uvicorn raises the signal that stopped it once more, after everything is closed: that is no failure here.
    old = {number: signal.signal(number, _nothing) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
        for number, handler in old.items():
            signal.signal(number, handler)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing."""


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named: asyncio turns Nagle's algorithm off only then. Without that, every answer on a kept
    # connection waits 40 ms for the client's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        listening.close()
        raise EnvironmentProblem(
            code="S611", message=f"{settings.host} port {settings.port} cannot be used: {error.strerror or error}",
            hint="another --port (0 takes any free one), or stop what listens there",
        ) from error  # fmt: skip
    listening.set_inheritable(True)
    return listening
