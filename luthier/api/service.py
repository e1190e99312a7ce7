"""The whole service in one process: the server, and the supervisor of the workers, on one home."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from luthier.api.app import api_app
from luthier.api.config import check_open
from luthier.api.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.jobs.worker.places import find_gpus
from luthier.jobs.worker.settings import WorkerSettings
from luthier.jobs.worker.supervisor import Supervisor
from luthier.pipeline.serving import open_host
from luthier.runtime.atomic import explain_os_error
from luthier.runtime.errors import EnvironmentProblem
from luthier.runtime.lock import owned
from luthier.serve.engine.scheduler import EngineLimits
from luthier.serve.server import run_server

__all__ = ["Ready", "own_home", "run_service", "worker_settings"]

PREFIX_TOKENS = 65_536
"""Prompt tokens kept for requests that begin alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is told when the server listens."""

    url: str
    keys: int
    """0: only this machine may ask, with any key."""
    workers: int
    models: tuple[str, ...]


def run_service(
    home: Path, runs: Path, settings: ServiceSettings, *, workers: int | None, ready: Callable[[Ready], None]
) -> None:
    """Serve until a signal comes; then answers under way end, and running jobs save and stop, to go on next time.

    Args:
        home: Folder of the service.
        runs: Folder of the run folders.
        settings: From `api.yaml`.
        workers: How many; None: as the settings say; 0: they run elsewhere.
        ready: Called once connections are accepted.

    Raises:
        RecipeError: A101 the address can be reached by others, and there are no keys.
        EnvironmentProblem: A103 another server has the home; S611 the address cannot be used.
    """
    with own_home(home):
        store = Store.open(home)
        try:
            keys = len(store.keys())
            check_open(settings, keys=keys)
            of_workers = worker_settings(settings, runs, workers)
            supervisor = Supervisor(home, of_workers) if workers != 0 else None
            host = open_host([], limits=EngineLimits(prefill_tokens=0, prefix_tokens=PREFIX_TOKENS), dtype=None)
            application = api_app(store, host, settings)

            def on_ready(url: str) -> None:
                models = tuple(sorted(application.state.catalog.bases))
                count = supervisor.workers if supervisor is not None else 0
                ready(Ready(url=url, keys=keys, workers=count, models=models))

            with supervisor or nullcontext():
                run_server(application, settings.server.serving(), ready=on_ready)
        finally:
            store.close()


def worker_settings(settings: ServiceSettings, runs: Path, workers: int | None) -> WorkerSettings:
    """What the worker processes read."""
    section = settings.workers
    if workers and section.devices is None and settings.launch.kind == "local":
        devices = find_gpus()[:workers] or [""] * workers
        section = section.model_copy(update={"devices": devices})
    return WorkerSettings(
        runs=str(runs.absolute()), organization=settings.organization, workers=section, launch=settings.launch,
        webhooks=settings.webhooks, service=settings.of_jobs(),
    )  # fmt: skip


@contextmanager
def own_home(home: Path) -> Iterator[None]:
    """Be the only server of a home, until the block or the process ends.

    Raises:
        EnvironmentProblem: A103; R710 and the like: not writable.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise explain_os_error(error, home) from error

    def taken(owner: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            code="A103", message=f"{home} is served by process {owner} already",
            hint="stop that one, or give this one another --home",
        )  # fmt: skip

    with owned(handle, taken):
        yield
