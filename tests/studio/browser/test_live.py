"""A run that goes on: what is on the page is what is in the files, whatever happens to the page or the connection."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.runs.folder import RunFolder
from tests.studio.browser.conftest import World

expect = pytest.importorskip("playwright.sync_api").expect

STEPS = 160


@pytest.fixture
def growing(world: World) -> Iterator[threading.Thread]:
    """A run folder whose owner (this process) writes a line of metrics every 60 ms."""
    folder = world.runs / "growing"
    shutil.copytree(world.runs / "first", folder)
    for stage in ("train", "evaluate", "compare", "merge", "report"):
        (folder / "stages" / f"{stage}.json").unlink(missing_ok=True)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    cut = next(index for index, event in enumerate(events) if event.get("stage") == "train")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events[: cut + 1]))
    (folder / "metrics.jsonl").write_text("")
    stop = threading.Event()

    def write() -> None:
        with RunFolder(folder).lock(), (folder / "metrics.jsonl").open("a") as file:
            for step in range(1, STEPS + 1):
                row = {
                    "step": step, "epoch": step / STEPS, "loss": 2 / step, "grad_norm": 0.0 if step == STEPS else 1.0,
                    "learning_rate": 1e-3, "tokens": 100 * step, "trained_tokens": 50 * step, "seconds": 0.06 * step,
                    "tokens_per_second": 1000.0,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
                file.flush()
                time.sleep(0.06)
            stop.wait(60)

    thread = threading.Thread(target=write)
    thread.start()
    yield thread
    stop.set()
    thread.join()
    shutil.rmtree(folder)


def _steps(page: Any) -> list[int]:
    """Steps in the table of the loss chart."""
    table = page.get_by_role("figure", name="Loss").get_by_role("rowheader")
    return [int(text.replace(",", "")) for text in table.all_text_contents()]


def test_reloads_and_a_lost_connection_lose_no_step(page: Any, growing: threading.Thread) -> None:
    page.goto("/studio/runs/growing")
    expect(page.get_by_text("running").first).to_be_visible()
    for _ in range(3):
        page.wait_for_timeout(1200)
        page.reload()
    page.wait_for_timeout(800)
    page.context.set_offline(True)
    page.wait_for_timeout(1500)
    page.context.set_offline(False)
    page.get_by_role("figure", name="Loss").locator("summary").click()
    last = page.get_by_role("figure", name="Loss").get_by_role("rowheader").last
    expect(last).to_have_text(str(STEPS))
    assert _steps(page) == list(range(1, STEPS + 1))
    # The browser tells of the connection that was cut on purpose.
    cut = ("ERR_INTERNET_DISCONNECTED", "ERR_NETWORK")
    page.watch.wrong = [line for line in page.watch.wrong if not any(word in line for word in cut)]


def test_a_gradient_of_zero_is_said_and_the_run_can_be_stopped(page: Any, growing: threading.Thread) -> None:
    page.goto("/studio/runs/growing")
    expect(page.get_by_role("alert").first).to_contain_text("gradient norm was 0", timeout=60_000)
    expect(page.get_by_role("button", name="Stop and save")).to_be_visible()
    page.get_by_role("button", name="Stop now").click()
    expect(page.get_by_role("dialog")).to_contain_text("sure")
    page.get_by_role("button", name="Leave it running").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_list_follows_a_run(page: Any, growing: threading.Thread) -> None:
    page.goto("/studio/")
    card = page.get_by_role("region", name="Running and waiting").get_by_role("link", name="growing")
    expect(card).to_be_visible(timeout=30_000)
    expect(card).to_contain_text(f"step {STEPS}", timeout=60_000)
