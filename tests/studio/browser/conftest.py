"""A real studio over real runs of a tiny model whose rows, names and errors are full of script payloads."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from luthier.pipeline.run import run_recipe
from luthier.recipe.load import recipe_from_dict
from tests.studio.browser.payloads import PAYLOADS
from tests.support.tiny import conversations, save_tiny

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder needs a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class World:
    """Folders and names of what the studio shows."""

    root: Path
    named: str
    """A run whose folder has a payload for a name."""
    base_url: str = ""
    once: str = ""
    process: Any = field(default=None, repr=False)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def count(self) -> int:
        """Of runs that there are now."""
        return len(list(self.runs.glob("*/events.jsonl")))


def _rows(count: int, seed: int) -> list[dict]:
    rows = conversations(count, seed=seed)
    for index, row in enumerate(rows):
        for message in row["messages"]:
            message["content"] = f"{PAYLOADS[index % len(PAYLOADS)]} {' '.join(message['content'].split()[:4])}"
    return rows


def _recipe(root: Path, run: str, **train: Any) -> Any:
    value = {
        "version": 1,
        "name": f"Title {PAYLOADS[0]}",
        "model": {"name_or_path": str(root / "model"), "dtype": "float32"},
        "data": {"train": [{"path": "train.jsonl"}], "validation": {"fraction": 0.2}, "max_length": 448},
        "method": {"name": "lora", "r": 4},
        "train": {
            "max_steps": 8,
            "learning_rate": 1e-3,
            "tokens_per_step": 512,
            "eval_steps": 4,
            "save_steps": 4,
            **train,
        },
        "evaluate": {
            "tasks": [
                {"name": "words", "path": "test.jsonl", "metric": "contains", "max_new_tokens": 6},
                {"name": "held_out", "path": "test.jsonl", "metric": "loss"},
            ]
        },
        "output_dir": f"runs/{run}",
    }
    return recipe_from_dict(value, origin="test")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three runs: two finished, one failed; started once for all tests."""
    root = tmp_path_factory.mktemp("studio")
    world = World(root=root, named="name <img src=x onerror=alert('name')>")
    save_tiny(root / "model")
    for name, count, seed in (("train", 30, 0), ("test", 20, 1)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(count, seed)))
    before = Path.cwd()
    os.chdir(root)
    try:
        run_recipe(_recipe(root, "first"), command=["luthier", "run", "first.yaml"])
        run_recipe(_recipe(root, "second", learning_rate=5e-3), command=["luthier", "run", "second.yaml"])
    finally:
        os.chdir(before)
    shutil.copytree(world.runs / "first", world.runs / world.named)
    shutil.copytree(world.runs / "first", world.runs / "broken")
    with (world.runs / "broken" / "events.jsonl").open("a") as file:
        for event in (
            {"event": "stage_started", "stage": "train", "reason": PAYLOADS[3]},
            {"event": "failed", "code": "T301", "message": f"it broke {PAYLOADS[1]}", "exit_code": 1},
        ):
            file.write(json.dumps({"time": "2026-11-26T12:00:00Z", **event}) + "\n")
    _start(world)
    yield world
    _stop(world)


def _start(world: World) -> None:
    command = [sys.executable, "-m", "luthier", "studio", "runs", "--port", "0", "--home", "home"]
    package = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": package, "PYTHONUNBUFFERED": "1"}
    world.process = subprocess.Popen(
        command, cwd=world.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in world.process.stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    said = ""
    while "login?once=" not in said:
        said += lines.get(timeout=90)
    found = re.search(r"(http://127\.0\.0\.1:\d+)(/studio/login\?once=\S+)", said)
    assert found, said
    world.base_url, world.once = found[1], found[1] + found[2]


def _stop(world: World) -> None:
    world.process.send_signal(signal.SIGINT)
    try:
        world.process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        world.process.kill()
        world.process.wait()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    sync = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium on this machine")
    sync.expect.set_options(timeout=60_000)  # a machine shared by many is slow, not wrong
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="session")
def session(world: World, browser: Any) -> dict:
    """Cookies of a browser that opened the printed link; the link must not work twice."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(world.once)
    assert page.url == f"{world.base_url}/studio/", "the token stays in no address"
    assert page.goto(world.once).status == 410
    state = context.storage_state()
    context.close()
    [cookie] = state["cookies"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    return state


class Watch:
    """Everything a page must not do."""

    def __init__(self, page: Any, base_url: str) -> None:
        self.wrong: list[str] = []
        self.base_url = base_url
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.wrong.append(f"script error: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((f"{self.base_url}/", "blob:")):
            self.wrong.append(f"request to {request.url}")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.type}: {message.text}")


def _page(world: World, browser: Any, session: dict, **options: Any) -> Iterator[Any]:
    context = browser.new_context(storage_state=session, base_url=world.base_url, **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    watch = Watch(page, world.base_url)
    page.watch = watch
    yield page
    context.close()
    assert not watch.wrong, "\n".join(watch.wrong)


@pytest.fixture
def page(world: World, browser: Any, session: dict) -> Iterator[Any]:
    """A page of 1440 x 900 that fails the test on any dialog, script error, console error or foreign request."""
    yield from _page(world, browser, session, viewport={"width": 1440, "height": 900}, color_scheme="light")


@pytest.fixture
def phone(world: World, browser: Any, session: dict) -> Iterator[Any]:
    """The same, 390 px wide and touched."""
    yield from _page(
        world, browser, session, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark"
    )
