"""A run on several processes in the browser, and the way from a file of rows to a recipe."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


def test_a_run_on_several_processes_says_so(world: Any, page: Any) -> None:
    folder = world.runs / "several"
    shutil.copytree(world.runs / "first", folder)
    try:
        started = {"event": "training_started", "step": 4, "total_steps": 8, "resumed_from": 4}
        started |= {"processes": 2, "machines": 1, "strategy": "fsdp2", "device": "cpu"}
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": "2026-11-27T00:00:00Z", **started}) + "\n")
        file = folder / "measured.json"
        measured = json.loads(file.read_text()) | {"peak_bytes_by_process": [3 << 30, 2 << 30]}
        file.write_text(json.dumps(measured))
        page.goto("/studio/runs/several")
        card = page.get_by_role("region", name="Processes")
        expect(card).to_contain_text("FSDP2: weights in shards")
        expect(card).to_contain_text(re.compile(r"2 timesfrom step 0; 4"))
        expect(card.get_by_role("row", name=re.compile("process 0"))).to_contain_text("3 GiB")
        expect(card.get_by_role("row", name=re.compile("process 1"))).to_contain_text("2 GiB")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        shutil.rmtree(folder)


def test_from_a_file_of_rows_to_a_recipe(page: Any) -> None:
    page.goto("/studio/data?path=train.jsonl")
    page.get_by_role("link", name="New run with these rows").click()
    expect(page.get_by_label("Run folder")).to_have_value("runs/train")
    expect(page.get_by_label("Training rows (file)")).to_have_value("train.jsonl")
    page.goto("/studio/new?from=first")
    expect(page.get_by_label("Run folder")).to_have_value("runs/first-2")
