"""The list: found, filtered, sorted, remembered; ten thousand runs."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from luthier.runs.folder import RunFolder
from luthier.runtime.errors import RecipeError
from luthier.studio.runs.index import Index
from luthier.studio.runs.line import disk_line, signature
from luthier.studio.runs.listing import Asked, listing
from luthier.studio.runs.processes import alive, born, held_locks, holder
from luthier.studio.settings import StudioSettings
from luthier.studio.store import Notes, StudioStore
from tests.studio.folders import make_run, many_runs


@pytest.fixture
def index(tmp_path):
    (tmp_path / "runs").mkdir()
    return Index(*parts(tmp_path))


def parts(root):
    settings = StudioSettings(runs=root / "runs", root=root, program=("x",), scan_seconds=0.0)
    return settings, StudioStore(settings.home)


def names(index, **asked):
    index.scan()
    return [line["name"] for line in listing(index, Asked(**{"sort": "name", **asked}))["runs"]]


def test_runs_are_found_at_two_levels_and_hidden_ones_are_not(index, tmp_path):
    runs = tmp_path / "runs"
    for name in ("b", "a", "sweep/trial-1", "sweep/deep/too-deep", ".hidden"):
        make_run(runs / name)
    (runs / "no run").mkdir()
    (runs / "file").write_text("x")
    assert names(index) == ["a", "b", "sweep/trial-1"]
    assert index.one("sweep~1trial-1")["name"] == "sweep/trial-1"


def test_a_run_that_appears_changes_and_goes(index, tmp_path):
    folder = make_run(tmp_path / "runs" / "a", finished=False)
    assert names(index) == ["a"]
    before = index.version
    assert names(index) == ["a"] and index.version == before
    RunFolder(folder).metric(step=7, loss=0.5)
    index.scan()
    assert index.version > before and index.one("a")["step"] == 7
    make_run(tmp_path / "runs" / "b")
    assert names(index) == ["a", "b"]
    import shutil

    shutil.rmtree(folder)
    assert names(index) == ["b"]
    with pytest.raises(RecipeError, match="no run"):
        index.one("a")


def test_filters_and_counts(index, tmp_path):
    runs = tmp_path / "runs"
    make_run(runs / "alpha")
    make_run(runs / "beta", failed={})
    make_run(runs / "gamma", finished=False, recipe={"method": {"name": "full"}, "name": "Sums"})
    index.scan()
    index.store.put_notes("beta", Notes(pinned=True, tags=("keep", "x"), notes="look at GAMMA rays"))
    assert names(index, q="135M alpha") == ["alpha"]
    assert names(index, q="gamma") == ["beta", "gamma"]
    assert names(index, q="full sums") == ["gamma"]
    assert names(index, q="nothing like it") == []
    assert names(index, status=("failed", "stopped")) == ["beta", "gamma"]
    assert names(index, pinned=True) == ["beta"] == names(index, tag="keep")
    page = listing(index, Asked(status=("failed",)))
    assert (
        page["total"] == 1
        and page["counts"] == {"finished": 1, "failed": 1, "stopped": 1}
        and page["tags"] == ["keep", "x"]
    )


def test_every_order_with_nulls_last_both_ways(index, tmp_path):
    runs = tmp_path / "runs"
    make_run(runs / "one", losses=[1.0])
    make_run(runs / "three", losses=[3.0])
    make_run(runs / "none", losses=[], finished=False)
    index.scan()
    assert names(index, sort="loss") == ["one", "three", "none"]
    assert names(index, sort="-loss") == ["three", "one", "none"]
    for name in (
        "started_at",
        "finished_at",
        "updated_at",
        "name",
        "status",
        "base",
        "method",
        "steps",
        "loss",
        "eval_loss",
        "delta",
        "score",
        "tokens_per_second",
        "peak_bytes",
        "seconds",
    ):
        assert sorted(names(index, sort=name)) == sorted(names(index, sort=f"-{name}")) == ["none", "one", "three"]
    with pytest.raises(RecipeError, match="sort must be one of"):
        listing(index, Asked(sort="no such"))


def test_pages_are_cuts_of_one_order(index, tmp_path):
    for number in range(7):
        make_run(tmp_path / "runs" / f"r{number}")
    whole = names(index, limit=7)
    assert [name for start in (0, 3, 6, 9) for name in names(index, offset=start, limit=3)] == whole


def test_lines_are_remembered_by_the_next_start(index, tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "a")
    index.scan()
    index.store.put_notes("a", Notes(tags=("kept",)))
    index.store.close()
    monkeypatch.setattr("luthier.studio.runs.index.disk_line", lambda *args: pytest.fail("read again"))
    again = Index(*parts(tmp_path))
    assert names(again) == ["a"]
    assert again.one("a")["tags"] == ["kept"]
    assert not [file for file in (tmp_path / "runs" / "a").rglob("*") if "studio" in file.name], (
        "nothing in the run's folder"
    )


def test_a_folder_that_cannot_be_written_shows_runs_and_refuses_notes(tmp_path):
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / ".studio").write_text("in the way")
    index = Index(*parts(tmp_path))
    assert names(index) == ["a"]
    from luthier.runtime.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        index.store.put_notes("a", Notes(pinned=True))


def test_a_name_that_cannot_be_shown_is_told(index, tmp_path):
    make_run(tmp_path / "runs" / "a\x1b[31m")
    make_run(tmp_path / "runs" / "b")
    page_names = names(index)
    assert page_names == ["b"]
    (told,) = listing(index, Asked())["damaged"]
    assert told["name"] == "a\\x1b[31m"


HOLD = (
    "import sys; from pathlib import Path; from luthier.runs.folder import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
)


def test_the_process_that_owns_a_run_is_seen_without_locking_it(index, tmp_path):
    folder = make_run(tmp_path / "runs" / "a", finished=False)
    assert index.one("a")["status"] == "stopped"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        assert holder(folder, held_locks()) == process.pid == holder(folder, None)
        line = index.one("a")
        assert line["status"] == "running" and line["actions"] == ["pause", "stop", "stop_now"]
    finally:
        process.communicate(b"")
    assert holder(folder, held_locks()) is None
    assert index.one("a")["status"] == "stopped"
    # Looking must never stand in the way of a run that starts at that moment.
    with (folder / ".lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held_locks()
        holder(folder, held_locks())


def test_processes():
    assert alive(os.getpid()) and not alive(0) and not alive(-5) and not alive(1 << 22)
    assert born(os.getpid()) == born(os.getpid()) != ""
    assert born(1 << 22) == ""


def test_ten_thousand_runs(tmp_path):
    """A bound ten times over what is measured (`benchmarks/studio.py`): other tests may run beside this one."""
    (tmp_path / "runs").mkdir()
    many_runs(tmp_path / "runs", 10_000, only=("recipe.yaml", "manifest.json"))
    index = Index(*parts(tmp_path))
    one = disk_line(tmp_path / "runs" / "run-00000", "run-00000", "run-00000")
    names = [f"run-{number:05d}" for number in range(10_000)]
    # As a start before this one left them; reading them all for the first time is measured in the benchmark.
    index.store.put_lines(
        (name, signature(f"{tmp_path}/runs/{name}"), {**one, "id": name, "name": name}) for name in names
    )
    index.scan()
    slowest = 0.0
    for asked in (
        Asked(),
        Asked(q="run-09"),
        Asked(sort="delta", status=("finished",)),
        Asked(offset=9_950, sort="-name"),
    ):
        started = time.thread_time()
        page = listing(index, asked)
        slowest = max(slowest, time.thread_time() - started)
        assert page["runs"] and page["total"] in (10_000, 1_000)
    assert slowest < 2.0
    assert listing(index, Asked(offset=9_950, sort="name"))["runs"][-1]["name"] == "run-09999"
