"""Launches that something happens to: what they say, what they leave, and that the same command goes on exactly.

All slow, on real processes. More of the random ones: `python -m tests.launch.faults --help`.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.train.checkpoint import checkpoints
from tests.launch.fault_harness import Faulty, differences, leftovers, whole_or_absent, write_files
from tests.launch.faults import chain, finish, reference_of
from tests.launch.forked import warm_up
from tests.launch.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PLANTED = ROOT / "tests/launch/planted"
PATIENCE = 600
METHODS = {"ddp": "lora", "fsdp2": "full"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    if "FAULTS_FORKED" in os.environ:  # no imports, for a busy machine
        warm_up()
    if kept := os.environ.get("FAULTS_FOLDER"):  # references of a campaign
        return Path(kept)
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


def faulty(files: Path, run: Path, strategy: str = "fsdp2", **fields) -> Faulty:
    fields = {"method": METHODS[strategy], "forked": "FAULTS_FORKED" in os.environ, **fields}
    return Faulty(files=files, run=run, strategy=strategy, processes=2, **fields)


def planted(files: Path, run: Path, fault: str, strategy: str) -> Faulty:
    variables = {"PLANTED": fault, "PYTHONPATH": f"{PLANTED}:{ROOT}"}
    return faulty(files, run, strategy, variables=variables)


def ended(one: Faulty) -> tuple[int, str]:
    """Exit code and all that was said."""
    launched = one.start()
    try:
        launched.process.wait(PATIENCE)
        assert launched.gone_within(20) is not None, "processes are left"
    finally:
        launched.clear()
    return launched.process.returncode, launched.text()


def last_of(said: str) -> str:
    return " ".join(said[said.rindex("error[") :].split())


def goes_on(files: Path, one: Faulty) -> None:
    """It ends as if nothing had been."""
    reference = reference_of(faulty(files, one.run, one.strategy))
    record = finish(replace(one, variables={}, overrides=()), reference, exact=True)
    assert record["wrong"] == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_killed_at_random_moments(files, tmp_path, strategy):
    records: list[dict] = []
    one = faulty(files, tmp_path / "run", strategy)
    chain(one, faults=2, chooser=random.Random(f"{time.time_ns()}"), other=False, say=records.append)
    assert [record for record in records if record["wrong"]] == [], records


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_error_of_one_process_is_told_with_its_number(files, tmp_path, strategy):
    one = planted(files, tmp_path / "run", "raise:1", strategy)
    code, said = ended(one)
    assert code == 1
    assert "process 1: unexpected ValueError: poison in this row" in last_of(said)
    assert "Traceback" not in said
    goes_on(files, one)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_loss_that_is_not_finite_in_one_process_ends_all_before_the_update(files, tmp_path, strategy):
    """The rows named are those of all processes: the one that speaks first need not be the one that has it."""
    one = planted(files, tmp_path / "run", "nan:1", strategy)
    code, said = ended(one)
    assert code == 1 and "error[T410]" in said
    named = {word for word in last_of(said).replace(",", " ").split() if "rows.jsonl:" in word}
    assert len(named) == 6, f"a step has six rows: {named}"
    assert [item.step for item in checkpoints(one.run / "checkpoints")] == [2]
    goes_on(files, one)


def test_a_clock_that_jumps_changes_nothing(files, tmp_path):
    one = planted(files, tmp_path / "run", "clock:0", "fsdp2")
    code, said = ended(one)
    assert code == 0, said
    assert differences(one.run, reference_of(faulty(files, one.run)), exact=True) == []


@pytest.mark.parametrize(("strategy", "rank"), [("fsdp2", 1), ("fsdp2", 0), ("ddp", 0)])
def test_a_disk_that_is_full_in_one_process(files, tmp_path, strategy, rank):
    """A limit on the size of files stands for it: only this process meets it, and only checkpoints are so large."""
    one = faulty(files, tmp_path / "run", strategy)
    launched = one.start()
    try:
        until = time.monotonic() + PATIENCE
        while not checkpoints(one.run / "checkpoints"):
            assert not launched.over and time.monotonic() < until, launched.text()
            time.sleep(0.005)
        resource.prlimit(launched.workers()[rank], resource.RLIMIT_FSIZE, (100_000, 100_000))
        launched.process.wait(120)
        assert launched.gone_within(60) is not None
    finally:
        launched.clear()
    said = launched.text()
    assert launched.process.returncode == 4, said
    assert f"process {rank}: cannot write" in last_of(said) and "File too large" in last_of(said)
    assert "Traceback" not in said
    assert checkpoints(one.run / "checkpoints") and whole_or_absent(one.run) == []
    assert leftovers(one.run / "checkpoints") == []
    goes_on(files, one)


def test_a_folder_that_may_not_be_written_any_more(files, tmp_path):
    one = faulty(files, tmp_path / "run", "ddp")
    folder = one.run / "checkpoints"
    launched = one.start()
    try:
        until = time.monotonic() + PATIENCE
        while not checkpoints(folder):
            assert not launched.over and time.monotonic() < until, launched.text()
            time.sleep(0.005)
        if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
            pytest.skip("this user may not protect a folder, or its file system cannot")
        launched.process.wait(120)
    finally:
        subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)
        launched.clear()
    assert launched.process.returncode == 4, launched.text()
    assert "process 0: cannot write" in last_of(launched.text())
    assert checkpoints(folder) and whole_or_absent(one.run) == []
    goes_on(files, one)


def test_two_launches_at_once(files, tmp_path):
    """The second is refused, and nothing of the first is touched; the lock of one that is gone does not count."""
    one = faulty(files, tmp_path / "run", "ddp")
    one.run.mkdir()
    (one.run / ".lock").write_text("4711")
    first = one.start()
    try:
        until = time.monotonic() + PATIENCE
        while not one.events("training_started"):
            assert not first.over and time.monotonic() < until, first.text()
            time.sleep(0.1)
        code, said = ended(one)
        first.process.wait(PATIENCE)
    finally:
        first.clear()
    assert first.process.returncode == 0, first.text()
    if code:  # else it came when the first had ended
        assert code == 4 and "is in use by process" in last_of(said)
    assert differences(one.run, reference_of(one), exact=True) == []


def test_a_run_folder_that_was_moved(files, tmp_path):
    one = faulty(files, tmp_path / "run")
    launched = one.start()
    try:
        until = time.monotonic() + PATIENCE
        while len(checkpoints(one.run / "checkpoints")) < 2:
            assert not launched.over and time.monotonic() < until, launched.text()
            time.sleep(0.005)
    finally:
        launched.clear()
    moved = replace(one, run=tmp_path / "elsewhere")
    shutil.copytree(one.run, moved.run)
    shutil.rmtree(one.run)
    goes_on(files, moved)
    assert moved.lines("events.jsonl")[-1]["event"] != "failed"
    assert any(line.get("resumed_from") for line in moved.lines("events.jsonl"))
