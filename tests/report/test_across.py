"""Contract: the page of several runs is self-contained, foreign text stays text, twenty runs fit on it."""

from __future__ import annotations

import random

import pytest

from luthier.evaluate.across import compare_runs
from luthier.report.across import render_page, write_page
from luthier.runtime.errors import EnvironmentProblem
from tests.evaluate.across.make_runs import SETTINGS, make_run
from tests.evaluate.test_compare import result
from tests.report.test_write import PAYLOADS, TAGS, Page


def page(runs, **options):
    return render_page(compare_runs(runs, **options).as_json())


def test_everything_is_there_and_nothing_is_loaded(tmp_path):
    scores = [1.0] * 20 + [0.0] * 10
    a = make_run(tmp_path / "first", scores=[0.0] * 30, reasons={"train.learning_rate": "a rule"})
    b = make_run(tmp_path / "second", scores=scores, changes={"train.learning_rate": 2e-3}, tokens=900)
    other = make_run(tmp_path / "third", tasks=[result(scores, settings={**SETTINGS, "template_hash": "other"})])
    html = page([a, b, other])
    read = Page(html)
    text = " ".join("".join(read.parts).split())
    for words in (
        "3 runs side by side", "1 of 1 paired test tells two runs apart", "train.learning_rate", "0.002", "a rule",
        "chat template differs", "66.7 %", "20 of 30 rows do not end alike", "Training loss, smoothed",
        "over trained tokens", "loads nothing",
    ):  # fmt: skip
        assert words in text, words
    assert read.tags <= TAGS
    assert not [item for name, item in read.attributes if name in ("href", "src") and not item.startswith("#")]
    assert html.count('<polyline class="run c0"') >= 2 and '<polyline class="run c2"' in html


def test_foreign_text_stays_text(tmp_path):
    names = [f"r{index}" for index in range(len(PAYLOADS))]
    runs = []
    for index, (name, payload) in enumerate(zip(names, PAYLOADS, strict=True)):
        rows = result([float(index % 2)] * 3, outputs=[payload] * 3)
        runs.append(make_run(tmp_path / name, tasks=[rows], changes={"name": payload}, reasons={"name": payload}))
    html = page(runs)
    read = Page(html)
    assert read.tags <= TAGS, "no tag of foreign text"
    text = "".join(read.parts)
    for payload in PAYLOADS:
        assert payload in text, payload


def test_invisible_characters_are_shown(tmp_path):
    runs = [make_run(tmp_path / str(i), tasks=[result([float(i)], outputs=["a\u202eb\x1bc"])]) for i in range(2)]
    html = page(runs)
    assert "\u202e" not in html and "\x1b" not in html and "a\ufffdb\u241bc" in html


def test_runs_that_came_to_nothing_yet(tmp_path):
    runs = [make_run(tmp_path / str(index)) for index in range(2)]
    for run in runs:
        for name in ("resolved.yaml", "manifest.json", "metrics.jsonl", "stages/train.json"):
            (run / name).unlink()
    html = page(runs)
    assert "not resolved yet" in html and "No run was scored" in html and "Nothing was logged" in html


def test_twenty_runs_are_told_apart_by_colour_and_dash(tmp_path):
    chooser = random.Random(3)
    runs = [
        make_run(tmp_path / f"run-{i}", scores=[float(chooser.random() < i / 20) for _ in range(30)],
                 losses=[2 - i / 40 - step / 30 for step in range(20)], changes={"train.seed": i})
        for i in range(20)
    ]  # fmt: skip
    html = page(runs, rows=3)
    kinds = {
        value
        for name, value in Page(html).attributes
        if name == "class" and value.startswith("run c") and not value.endswith("dot")
    }
    assert len(kinds) == 20
    assert len(html) < 2_000_000


def test_a_page_that_cannot_be_written(tmp_path):
    runs = [make_run(tmp_path / str(index)) for index in range(2)]
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem):
        write_page(compare_runs(runs).as_json(), tmp_path / "file" / "page.html")
