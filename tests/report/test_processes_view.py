"""The report of a run on several processes: what it was divided into, and each against the plan."""

import json

import pytest

from luthier.report.processes_view import process_facts
from luthier.report.read import read_run
from luthier.report.write import render
from tests.report.make_run import MEASURED, make_run

GIB = 1 << 30


def _started(step: int, **more) -> dict:
    return {"event": "training_started", "step": step, "total_steps": 75, "resumed_from": step or None, **more}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", n=4, steps=5)


def test_one_process_has_no_such_section(run):
    assert "Processes</h3>" not in render(read_run(run))


def test_the_page_says_how_and_what_each_took(run):
    how = {"processes": 2, "machines": 2, "strategy": "fsdp2", "device": "cuda"}
    for step in (0, 40):
        run.event("training_started", **{key: item for key, item in _started(step, **how).items() if key != "event"})
    measured = {**MEASURED, "tokens_per_second": 3000.0, "peak_bytes_by_process": [3 * GIB, 2 * GIB]}
    measured["predicted"] = {**MEASURED["predicted"], "peak_bytes": 2 * GIB}
    (run.path / "measured.json").write_text(json.dumps(measured))
    page = render(read_run(run))
    for said in (
        "<span>2 processes, fsdp2</span>", "<dt>machines</dt><dd>2</dd>", "<dt>tokens a second each</dt><dd>1,500</dd>",
        "2 times<small> from step 0, 40</small>",
        '<td>process 0</td><td class="n">2.0 GiB</td><td class="n">3.0 GiB</td><td class="n">+50.0 %</td>',
        '<td>process 1</td><td class="n">2.0 GiB</td><td class="n">2.0 GiB</td><td class="n">+0.0 %</td>',
    ):  # fmt: skip
        assert said in page


def test_a_run_made_before_it_was_recorded_is_told_by_its_result_and_plan():
    facts = process_facts([_started(0)], result={"processes": 4}, measured={}, plan={"decision": {"strategy": "zero2"}})
    assert facts is not None
    assert (facts.processes, facts.strategy, facts.machines, facts.peak_bytes) == (4, "zero2", None, ())
    assert process_facts([_started(0)], result={"processes": 1}, measured={}, plan={}) is None


def test_of_many_processes_three_stand_for_all():
    measured = {"peak_bytes_by_process": [100 + (7 * rank) % 64 for rank in range(64)]}
    facts = process_facts([], result={"processes": 64}, measured=measured, plan={})
    assert facts is not None
    assert [size for _, size in facts.rows] == [100, 132, 163]
    assert facts.rows[0][0] == "least: process 0"
