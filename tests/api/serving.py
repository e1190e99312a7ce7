"""The whole API on a free port for a test: a store in a temporary folder, tiny models, uvicorn in a thread."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from luthier.api.app import api_app
from luthier.api.settings import ServerSection, ServiceSettings
from luthier.jobs.records import ModelRecord
from luthier.jobs.settings import LimitsSection
from luthier.jobs.store import Store
from luthier.runtime.device import pick_device
from luthier.serve.engine.scheduler import EngineLimits
from luthier.serve.host import Host
from luthier.serve.server import make_server
from tests.serve.serving import Server

ANY_KEY = "sk-whatever-a-customer-has"


class Api(Server):
    """A server under way, and the store behind it."""

    def __init__(self, url, host, server, thread, store, app):
        super().__init__(url, host, server, thread)
        self.store, self.app = store, app

    def client(self, key=ANY_KEY, **more):
        return super().client(**{"api_key": key, **more})

    def async_client(self, key=ANY_KEY, **more):
        return super().async_client(**{"api_key": key, **more})

    def key(self, owner="ann", *scopes, **limits) -> str:
        """A new key's text."""
        name = f"key-{len(self.store.keys())}"
        return self.store.new_key(name, owner, scopes or ("files", "jobs", "models", "chat"), limits)[1]

    def ask(self, path, key=None, *, method="GET", body=None, **headers):
        """(status, JSON) of a plain request."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        status, _, text = self.get(path, method=method, body=data, headers=headers)
        return status, json.loads(text) if text else None


def tuned_model(store, name: str, folder: Path, base: Path, owner="ann", kind="tuned", parent=None) -> None:
    store.put_model(
        ModelRecord(
            name=name, owner=owner, created=1_700_000_000, kind=kind, base=str(base), path=str(folder), parent=parent
        )
    )


@contextmanager
def api(home: Path, *, store=None, models=None, limits=None, jobs=None, routes=(), rules=(), **server):
    """Serve until the end of the block.

    Args:
        models: Names of bases and their folders.
        limits, jobs: Of the settings.
        server: Section `server` of the settings.
    """
    settings = ServiceSettings(
        server=ServerSection(**{"port": 0, "drain_seconds": 5.0, **server}), limits=LimitsSection(**(limits or {})),
        models={name: str(folder) for name, folder in (models or {}).items()}, **(jobs or {}),
    )  # fmt: skip
    store = store or Store.open(home)
    host = Host(device=pick_device(), dtype="float32", limits=EngineLimits(prefill_tokens=256))
    made = api_app(store, host, settings, routes=routes, rules=rules)
    found, ready = [], threading.Event()

    def on_ready(url):
        found.append(url)
        ready.set()

    server, listening = make_server(made, settings.server.serving(), ready=on_ready)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    assert ready.wait(120)
    try:
        running = Api(found[0], host, server, thread, store, made)
        running.settings, running.folder = settings, home.parent
        yield running
    finally:
        server.should_exit = True
        thread.join(120)
        listening.close()
        store.close()
        assert not thread.is_alive(), "the server did not stop"


def until(condition, seconds=60.0, pause=0.02):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(pause)
    return found
