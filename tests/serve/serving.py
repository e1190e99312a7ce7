"""A real server on a free port for a test: tiny models, uvicorn in a thread, the official client."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import torch

from luthier.model.identity import BaseRecord, base_identity, write_record
from luthier.pipeline.serving import resolve
from luthier.recipe.schema import ModelSection
from luthier.runtime.device import pick_device
from luthier.serve.engine.scheduler import EngineLimits
from luthier.serve.host import Host, Target
from luthier.serve.http.app import app
from luthier.serve.server import make_server
from luthier.serve.settings import ServeSettings
from tests.support.tiny import tiny_model

KEY = "a-key-of-tests"


def adapter_folder(folder: Path, base: Path, *, seed: int, **config) -> Path:
    """A LoRA adapter with weights that matter, as Luthier writes it."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "magnitude" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    record = BaseRecord(name_or_path=str(base), revision=None, hash=base_identity(base)["hash"])
    write_record(folder, kind="adapter", base=record)
    return folder


class Server:
    """A server under way."""

    def __init__(self, url, host, server, thread):
        self.url, self.host, self.server, self.thread = url, host, server, thread

    def client(self, **more):
        """The official client; it does not try again by itself."""
        from openai import OpenAI

        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": 60, **more})

    def async_client(self, **more):
        from openai import AsyncOpenAI

        return AsyncOpenAI(**{"base_url": f"{self.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": 60, **more})

    def get(self, path, *, method="GET", body=None, headers=None):
        """(status, headers, body) of a plain request."""
        import urllib.error
        import urllib.request

        asked = urllib.request.Request(self.url + path, data=body, method=method, headers=headers or {})
        if body is not None:
            asked.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def idle(self):
        """No request has a row or waits for one."""
        return not any(engine.running + engine.waiting for engine in self.host.engines)


def host_of(targets, **limits) -> Host:
    host = Host(device=pick_device(), dtype="float32", limits=EngineLimits(**limits))
    for target in targets:
        host.add(target)
    return host


@contextmanager
def serving(targets, *, limits=None, **settings):
    """Serve until the end of the block, then drain."""
    settings = ServeSettings(**{"port": 0, "drain_seconds": 5.0, **settings})
    host = host_of(targets, **{"prefix_tokens": 4096, **(limits or {})})
    found, ready = [], threading.Event()

    def on_ready(url):
        found.append(url)
        ready.set()

    server, listening = make_server(app(host, settings, resolve=resolve), settings, ready=on_ready)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    assert ready.wait(120)
    try:
        yield Server(found[0], host, server, thread)
    finally:
        server.should_exit = True
        thread.join(120)
        listening.close()
        assert not thread.is_alive(), "the server did not stop"
        assert not any(engine.alive for engine in host.engines)


def plain(folder: Path, name: str = "tiny", **section) -> Target:
    return Target(name=name, section=ModelSection(name_or_path=str(folder), **section))


def tuned(folder: Path, base: Path, name: str, *, base_name: str | None = "tiny") -> Target:
    section = ModelSection(name_or_path=str(base))
    return Target(name=name, section=section, folder=folder, base_name=base_name)
