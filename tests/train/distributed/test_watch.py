"""Which process a hang is told of."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.runtime import heartbeat
from luthier.runtime.errors import EnvironmentProblem, RunFailed
from luthier.train.distributed import watch
from luthier.train.distributed.watch import Beat, beating, describe_hang, find_hang, read_beats


def beat(rank: int, operation: str = "average gradients", **fields) -> Beat:
    facts = {
        "host": "h", "pid": 100 + rank, "beat": 7, "count": 50, "step": 4, "exchange": True, "watched": True,
        "idle_seconds": 100.0, **fields,
    }  # fmt: skip
    return Beat(rank=rank, operation=operation, **facts)


def computing(rank: int, **fields) -> Beat:
    return beat(rank, "forward and backward", exchange=False, **fields)


@pytest.mark.parametrize(
    ("beats", "guilty"),
    [
        ([beat(0, idle_seconds=1.0), computing(1)], []),  # one moves: so does the run
        ([beat(0), computing(1), beat(2)], [1]),  # who computes holds up those that wait
        ([beat(0), beat(1, silent_seconds=90.0)], [1]),  # who does not write any more is stopped
        ([beat(0), beat(1, count=48), beat(2)], [1]),  # all wait: who is behind
        ([computing(0), computing(1)], [0, 1]),  # nobody waits: all of them
        ([beat(0), beat(1, watched=False)], []),  # scoring may take as long as it takes
        ([], []),
    ],
)
def test_who_is_to_blame(beats, guilty):
    assert [one.rank for one in find_hang(beats, limit=60.0)] == guilty


def test_the_error_names_process_operation_and_step():
    beats = [beat(0), computing(1)]
    text = str(describe_hang(find_hang(beats, limit=60.0), beats))
    assert "process 1 (h, pid 101) has been in `forward and backward` of step 4 for 100 s" in text
    assert "waiting for it: process 0 in `average gradients` of step 4" in text
    frozen = [beat(0), beat(1, idle_seconds=3.0, silent_seconds=90.0)]
    assert "process 1 (h, pid 101) has not answered for 90 s" in str(describe_hang(find_hang(frozen, limit=60), frozen))


def test_a_process_that_never_wrote_is_told_of():
    absent = beat(1, "starting", pid=0, watched=False, idle_seconds=0.0, silent_seconds=90.0)
    beats = [beat(0), absent]
    assert "process 1 has not begun for 90 s" in str(describe_hang(find_hang(beats, limit=60.0), beats))
    assert find_hang([beat(0), replace(absent, silent_seconds=5.0)], limit=60.0) == []


def test_one_process_writes_no_heartbeat(tmp_path):
    with beating(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_several_write_what_they_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LUTHIER_HANG_SECONDS", "40")
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.1)
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes/rank-0.json").write_text("{torn")
    with beating(tmp_path):
        heartbeat.mark("forward and backward", step=11)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = read_beats(tmp_path / "processes")
            if found and found[0].step == 12:
                break
            time.sleep(0.05)
    assert [(one.rank, one.operation, one.step, one.exchange) for one in found] == [
        (1, "forward and backward", 12, False)
    ]
    assert json.loads((tmp_path / "processes/rank-1.json").read_text())["beat"] > found[0].beat - 1


def test_a_full_disk_is_one_error_at_the_start_and_hides_nothing_at_the_end(tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunFailed, match="the true cause"), beating(tmp_path):
        monkeypatch.setattr(Path, "write_text", full)
        raise RunFailed(code="T410", message="the true cause")
    with pytest.raises(EnvironmentProblem, match="No space left"), beating(tmp_path):
        pass
