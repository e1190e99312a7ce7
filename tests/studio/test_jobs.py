"""Jobs of the API in the list: waiting ones without a folder, running ones with theirs; actions go to their queue."""

import pytest

from luthier.jobs.errors import Conflict
from luthier.jobs.records import JobRecord
from luthier.studio.runs.index import Index
from luthier.studio.runs.listing import Asked, listing
from luthier.studio.settings import StudioSettings
from luthier.studio.store import StudioStore
from tests.studio.asking import Desk
from tests.studio.folders import make_run


class Queue:
    """As `luthier.studio.runs.jobs.Jobs`."""

    def __init__(self, *jobs):
        self.jobs, self.wanted = {job.run_name: job for job in jobs}, []

    def by_run(self):
        return self.jobs

    def want(self, job, wanted):
        if wanted == "run":
            raise Conflict(code="J103", message="not now")
        self.wanted.append((job, wanted))


def job(name, status, **keys):
    return JobRecord(
        id=name,
        owner="o",
        created_at=1_800_000_000,
        model="m",
        base="org/base",
        method={"type": "supervised"},
        hyperparameters={},
        training_file="file-1",
        seed=0,
        run_name=name,
        status=status,
        **keys,
    )


@pytest.fixture
def index(tmp_path):
    make_run(tmp_path / "runs" / "ftjob-run", finished=False)
    make_run(tmp_path / "runs" / "own")
    settings = StudioSettings(runs=tmp_path / "runs", root=tmp_path, program=("x",), scan_seconds=0.0)
    failed = {"code": "bad_file", "message": "line 3", "param": "training_file"}
    queue = Queue(job("ftjob-wait", "queued"), job("ftjob-run", "running"), job("ftjob-bad", "failed", error=failed))
    return Index(settings, StudioStore(settings.home), queue)


def test_waiting_jobs_stand_in_the_list(index):
    index.scan()
    lines = {line["id"]: line for line in listing(index, Asked(sort="name"))["runs"]}
    assert {ident: line["status"] for ident, line in lines.items()} == {
        "ftjob-bad": "failed",
        "ftjob-run": "running",
        "ftjob-wait": "queued",
        "own": "finished",
    }
    assert lines["ftjob-bad"]["error"] == {"code": "bad_file", "message": "line 3"}
    assert lines["ftjob-wait"]["actions"] == ["cancel"] and lines["ftjob-run"]["actions"] == ["pause", "cancel"]
    assert lines["ftjob-run"]["step"] == 3 and lines["ftjob-run"]["job"] == "ftjob-run" and lines["own"]["job"] is None
    assert set(lines["ftjob-wait"]) == set(lines["own"])


def test_a_job_that_is_asked_to_pause_is_stopping(index):
    index.jobs.jobs["ftjob-run"] = job("ftjob-run", "running", wanted="pause")
    assert index.one("ftjob-run")["status"] == "stopping" and index.one("ftjob-run")["actions"] == []


def test_actions_go_to_the_queue(tmp_path):
    with Desk(tmp_path) as desk:
        desk.studio.index.jobs = queue = Queue(job("ftjob-wait", "queued"), job("ftjob-sleep", "paused"))
        answer = desk.ask("/studio/api/runs/ftjob-wait/actions", method="POST", body={"action": "cancel"})
        assert answer.status == 202 and queue.wanted == [("ftjob-wait", "cancel")]
        assert (
            desk.ask("/studio/api/runs/ftjob-wait/actions", method="POST", body={"action": "pause"}).error["code"]
            == "W120"
        )
        refused = desk.ask("/studio/api/runs/ftjob-sleep/actions", method="POST", body={"action": "resume"})
        assert refused.status == 409 and refused.error["code"] == "J103"
        assert desk.ask("/studio/api/runs/ftjob-wait").error["code"] == "W104", "it has no folder to look into yet"
