"""Run a studio: the server with its pages, until a signal comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.api.problems import as_api_error
from luthier.api.settings import ServiceSettings
from luthier.jobs.errors import TooMany
from luthier.jobs.store import Store
from luthier.jobs.throttle import WrongKeys
from luthier.runtime.errors import RecipeError
from luthier.serve.server import run_server
from luthier.studio.app import LaterApp, studio_app
from luthier.studio.context import Studio
from luthier.studio.http.gate import KeyCheck
from luthier.studio.http.session import Sessions, cookie_of
from luthier.studio.settings import StudioSettings

if TYPE_CHECKING:
    from luthier.api.caller import Caller

__all__ = ["admin_keys", "api_beside", "run_studio"]


def run_studio(
    settings: StudioSettings, service: ServiceSettings, *, home: Path, ready: Callable[[str, str], None],
    workers: int = 0,
) -> None:  # fmt: skip
    """Serve until a signal comes; runs that were started go on.

    Args:
        settings: Where the runs are.
        service: Address and bounds of the server.
        home: Folder of the API: files, jobs, keys.
        ready: Called with the address and the link that works once, when connections are accepted.
        workers: Jobs of the API that run at a time here; 0: none (`luthier api` beside it may run them).

    Raises:
        RecipeError: W125: others can reach the address, and there is no key.
        EnvironmentProblem: the address or a folder cannot be used.
    """
    settings.check()
    store = Store.open(home)
    try:
        keys = [key for key in store.keys() if key.revoked_at is None and "admin" in key.scopes]  # noqa: SIM118
        if not service.server.loopback and not keys:
            raise RecipeError(
                code="W125",
                message=f"{service.server.host} can be reached by others, and there is no key for the studio",
                hint="`luthier api keys new NAME --scope admin`, or leave --host at 127.0.0.1",
            )  # fmt: skip
        studio, sessions = Studio.open(settings, service=store), Sessions()
        application = studio_app(
            studio, service.server, sessions, other=api_beside(studio, store, service, sessions),
            key_is_admin=admin_keys(store, service),
        )  # fmt: skip
        with _queue(home, settings.runs, service, workers) if workers else nullcontext():
            run_server(
                application, service.server.serving(),
                ready=lambda url: ready(url, f"{url}/studio/login?once={sessions.new_link()}"),
            )  # fmt: skip
    finally:
        store.close()


@contextmanager
def _queue(home: Path, runs: Path, service: ServiceSettings, workers: int) -> Iterator[None]:
    """Workers that run the jobs of the API, as `luthier api` has them; a home has one such server."""
    from luthier.api.service import own_home, worker_settings
    from luthier.jobs.worker.supervisor import Supervisor

    with own_home(home), Supervisor(home, worker_settings(service, runs, workers)):
        yield


def api_beside(studio: Studio, store: Store, service: ServiceSettings, sessions: Sessions) -> LaterApp:
    """The API's application, made when its first request comes; the studio's session opens it."""

    def make() -> Any:
        from luthier.api.app import api_app
        from luthier.api.caller import LOCAL
        from luthier.pipeline.serving import open_host
        from luthier.serve.engine.scheduler import EngineLimits
        from luthier.studio.catalog import RunCatalog

        def caller(headers: dict[str, str]) -> Caller | None:
            return LOCAL if sessions.knows(cookie_of(headers.get("cookie", ""))) else None

        host = open_host([], limits=EngineLimits(prefill_tokens=0, prefix_tokens=16_384), dtype=None)
        return api_app(store, host, service, sessions=caller, catalog=RunCatalog(store, service, studio))

    return LaterApp(make, lambda made: made.state.service.host.close())


def admin_keys(store: Store, service: ServiceSettings) -> KeyCheck:
    """Keys of the API with the scope `admin` open the studio's routes as well; guessing is slowed down."""
    wrong = WrongKeys(service.server.wrong_keys_per_minute + 1)

    async def check(key: str, address: str) -> bool:
        record = await asyncio.to_thread(store.key_of, key)
        if record is None:
            try:
                wrong.wrong(address)
            except TooMany as error:
                raise as_api_error(error) from error
            return False
        return "admin" in record.scopes

    return check
