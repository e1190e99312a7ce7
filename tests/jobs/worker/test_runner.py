"""Contract: from claim to end: what a client sees, pause and resume, cancel, failures, deaths, shutdown."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from luthier.jobs.records import JobRecord
from luthier.jobs.worker.folder import JobPlace, lock_owner
from luthier.jobs.worker.runner import Runner
from luthier.jobs.worker.tell import Teller
from luthier.launch.choose import launcher_of
from luthier.launch.local import Local
from luthier.launch.task import Status
from luthier.runs.folder import RunFolder
from tests.jobs.worker.service import Service, stand_in, wait_for


@pytest.fixture
def service(tmp_path):
    return Service(tmp_path, **stand_in())


@pytest.fixture
def unplanned(monkeypatch):
    """No plan is made for a cluster: it takes a second or two."""
    monkeypatch.setattr("luthier.jobs.worker.runner.plan_of", lambda recipe, gpu, gpus: None)


def _runner(service, launcher=None, worker="cpu-0", **workers):
    section = service.settings.workers.model_copy(update=workers)
    settings = service.settings.model_copy(update={"workers": section})
    return Runner(
        store=service.store, settings=settings, launcher=launcher or launcher_of(settings.launch), worker=worker,
        recipe_of=service.recipe_of, stopping=threading.Event(),
    )  # fmt: skip


def _run(service, runner, *, then=None):
    """Claim and run; `then` is called beside it."""
    failed = []

    def beside():
        try:
            then()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failed.append(error)
            runner.stopping.set()

    job = service.store.claim(runner.worker, 20.0)
    thread = threading.Thread(target=beside) if then else None
    if thread:
        thread.start()
    runner.run(job)
    if thread:
        thread.join()
    assert not failed, failed
    return service.store.job(job.id)


def _stepping(service, job, step=4):
    wait_for(lambda: any(event.data.get("step", 0) >= step for event in service.events(job) if event.type == "metrics"))


def test_what_a_client_sees_of_a_job(service):
    job = service.job(steps=4)
    done = _run(service, _runner(service))
    assert (done.status, done.trained_tokens, done.worker) == ("succeeded", 400, None)
    assert done.fine_tuned_model == f"ft:tiny:luthier::{job.id[-8:]}"
    messages = service.messages(job)[3:]
    assert [message for message in messages if "Checkpoint" not in message] == [
        "Fine-tuning job started", "Training", "Training begins: 4 steps", "Step 1/4: training loss=1.0000",
        "Step 2/4: training loss=0.5000", "Step 2/4: validation loss=1.0000", "Step 3/4: training loss=0.3333",
        "Step 4/4: training loss=0.2500", "Step 4/4: validation loss=0.5000",
        f"New fine-tuned model created: {done.fine_tuned_model}", "The job has successfully completed",
    ]  # fmt: skip
    for step in (2, 4):
        place = messages.index(f"Checkpoint created at step {step}")
        assert messages.index(f"Step {step}/4: validation loss={2 / step:.4f}") < place
    checkpoints, _ = service.store.checkpoints(job.id)
    assert [one.name for one in checkpoints] == [f"{done.fine_tuned_model}:ckpt-step-{step}" for step in (4, 2)]
    assert checkpoints[0].metrics == {
        "step": 4, "train_loss": 0.25, "train_mean_token_accuracy": 0.004, "valid_loss": 0.5, "full_valid_loss": 0.5,
        "valid_mean_token_accuracy": 0.002, "full_valid_mean_token_accuracy": 0.002,
    }  # fmt: skip
    for checkpoint in checkpoints:
        assert json.loads(Path(checkpoint.path, "weights.json").read_text())[-1] == checkpoint.step
        assert service.store.model(checkpoint.name, "me").path == checkpoint.path
    text = service.store.file_path(service.store.file(done.result_files[0], "me")).read_text()
    assert text.splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy", "1,1.0,0.001,,", "2,0.5,0.002,1.0,0.001",
        f"3,{1 / 3!r},0.003,,", "4,0.25,0.004,0.5,0.002",
    ]  # fmt: skip


def test_a_pause_frees_the_worker_and_a_resume_goes_on_from_the_checkpoint(service):
    job, runner = service.job(steps=40), _runner(service)

    def pause():
        _stepping(service, job)
        service.store.want(job.id, "pause")

    paused = _run(service, runner, then=pause)
    assert (paused.status, paused.worker, paused.estimated_finish) == ("paused", None, None)
    assert lock_owner(RunFolder(service.runs / job.run_name)) is None
    steps = [event.data["step"] for event in service.events(job) if event.type == "metrics"]
    assert 4 <= max(steps) < 40
    assert service.store.claim("cpu-0", 20.0) is None, "nobody takes it while it is paused"
    service.store.want(job.id, "run")
    done = _run(service, runner)
    assert done.status == "succeeded" and done.attempts == 2
    assert f"Training goes on after step {max(steps)} of 40" in service.messages(job)
    assert json.loads((service.runs / job.run_name / "final/weights.json").read_text()) == list(range(1, 41))


def test_a_cancel_ends_the_run_and_is_final(service):
    job = service.job(steps=400)

    def cancel():
        _stepping(service, job)
        service.store.want(job.id, "cancel")

    done = _run(service, _runner(service), then=cancel)
    assert done.status == "cancelled" and done.fine_tuned_model is None and done.result_files == ()
    assert service.messages(job)[-1] == "Fine-tuning job cancelled"


def test_a_run_that_does_not_listen_is_killed(service):
    job = service.job(steps=4_000, stand_in={"deaf": True})

    def cancel():
        _stepping(service, job)
        service.store.want(job.id, "cancel")

    assert _run(service, _runner(service, cancel_seconds=0.3), then=cancel).status == "cancelled"
    steps = [event.data["step"] for event in service.events(job) if event.type == "metrics"]
    assert max(steps) < 4_000


def test_a_shutdown_leaves_the_job_running_for_the_next_worker(service):
    job, runner = service.job(steps=40), _runner(service)

    def stop():
        _stepping(service, job)
        runner.stopping.set()

    left = _run(service, runner, then=stop)
    assert (left.status, left.worker, left.wanted) == ("running", None, "run")
    assert _run(service, _runner(service, worker="cpu-1")).status == "succeeded"


@pytest.mark.parametrize(("exit_code", "code", "param"), [
    (1, "training_failed", None), (2, "invalid_recipe", None), (3, "invalid_training_file", "training_file"),
    (4, "server_error", None), (5, "out_of_memory", None), (6, "model_not_available", "model"),
])  # fmt: skip
def test_exit_codes_become_errors(service, exit_code, code, param):
    problem = {
        "code": "D210",
        "message": "no `messages`",
        "file": f"/srv/files/{service.file.id}",
        "line": 7,
        "hint": "add it",
    }
    say = {"ok": False, "exit_code": exit_code, "problems": [problem]}
    service.job(stand_in={"exit": exit_code, "say": say})
    done = _run(service, _runner(service))
    assert done.status == "failed"
    assert done.error == {
        "code": code, "message": f"{service.file.id} line 7: no `messages` (add it)", "param": param
    }  # fmt: skip


def test_an_error_shows_no_path_or_secret_of_this_machine(service, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-4711-canary")
    text = "cannot read /srv/private/model.bin with canary-4711-canary"
    service.job(stand_in={"exit": 4, "say": {"problems": [{"message": text}]}})
    message = _run(service, _runner(service)).error["message"]
    assert "canary" not in message and "/srv" not in message and "model.bin" in message


def test_without_a_word_the_end_of_the_log_is_the_error(service):
    service.job(stand_in={"exit": 1, "say": None})
    assert _run(service, _runner(service)).error["message"] == "the run ended with exit code 1"


def test_a_run_that_dies_goes_on_but_not_for_ever(service):
    job = service.job(steps=8, stand_in={"dies_at": 5})
    done = _run(service, _runner(service, crashes=3))
    assert done.status == "failed" and done.error["code"] == "server_error"
    assert "SIGKILL, 3 times in a row" in done.error["message"]
    assert sum("goes on from its last checkpoint" in message for message in service.messages(job)) == 3
    steps = [
        event.data["step"] for event in service.events(job) if "train_loss" in event.data and event.type == "metrics"
    ]
    assert steps == [1, 2, 3, 4], "told once, though the last steps ran again"


def test_a_recipe_that_cannot_be_made_fails_the_job(service):
    from luthier.runtime.errors import RecipeError

    def refuse(job):
        raise RecipeError(code="C103", message="`train.learning_rate` must be above 0")

    service.job()
    runner = _runner(service)
    runner.recipe_of = refuse
    done = _run(service, runner)
    assert done.status == "failed" and done.error["code"] == "invalid_recipe"


def test_a_fault_of_ours_gives_the_job_back_and_fails_it_only_in_the_end(service, capsys):
    job = service.job()

    def fault(job):
        raise ZeroDivisionError

    for attempt in (1, 2, 3):
        runner = _runner(service, crashes=3)
        runner.recipe_of = fault
        now = _run(service, runner)
        assert now.status == ("failed" if attempt == 3 else "running") and now.worker is None
    assert now.error["code"] == "server_error" and "ZeroDivisionError" in now.error["message"]
    assert "Traceback" in capsys.readouterr().err
    assert service.messages(job)[-1].startswith("The job failed: a fault in Luthier")


def test_a_cluster_that_is_down_for_a_while_fails_no_job(service, unplanned):
    from luthier.runtime.errors import EnvironmentProblem

    class Down(Cluster):
        def submit(self, task):
            if len(self.submitted) < 2:
                self.submitted.append(task)
                raise EnvironmentProblem(code="L162", message="`sbatch` failed: unable to contact the controller")
            self.answer = Status(phase="ended", exit_code=0)
            return task.name

        def find(self, task):
            return None

    job = service.job()
    assert _run(service, _runner(service, launcher=Down())).status == "succeeded"
    assert sum("unable to contact" in message for message in service.messages(job)) == 2


def test_the_recipe_is_written_once(service):
    job, runner = service.job(steps=40), _runner(service)

    def stop():
        _stepping(service, job)
        runner.stopping.set()

    _run(service, runner, then=stop)
    place = JobPlace.of(job, home=service.home, runs=service.runs)
    before = place.recipe.read_text()
    again = _runner(service)
    again.recipe_of = lambda job: pytest.fail("made again")
    assert _run(service, again).status == "succeeded"
    assert place.recipe.read_text() == before


def test_a_run_that_a_dead_worker_left_is_ended_before_the_next_begins(service):
    job, runner = service.job(steps=40), _runner(service)
    place = JobPlace.of(job, home=service.home, runs=service.runs)
    place.make()
    place.write_recipe(runner.recipe_of(job))
    command = [*service.settings.launch.command, str(place.recipe), "--json"]
    orphan = subprocess.Popen(
        command, env={**os.environ, **service.settings.launch.environment}, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: (place.run.path / "metrics.jsonl").is_file())
    assert lock_owner(place.run) == orphan.pid
    assert _run(service, runner).status == "succeeded"
    assert orphan.wait() == 130, "it was asked to save"
    assert any("goes on after step" in message for message in service.messages(job))


def test_a_folder_that_somebody_else_works_in_is_waited_for(service):
    job, runner = service.job(steps=4), _runner(service)
    with RunFolder(service.runs / job.run_name).lock():

        def release():
            wait_for(lambda: any("in use by process" in message for message in service.messages(job)))
            assert service.store.job(job.id).status == "running"
            service.store.want(job.id, "cancel")

        assert _run(service, runner, then=release).status == "cancelled"


def test_a_kill_between_the_result_file_and_the_end_leaves_one_of_each(service, monkeypatch):
    job, runner = service.job(steps=4), _runner(service)
    real = service.store.move

    class Killed(BaseException):
        pass

    def killed(id_, *, to, **fields):
        if to == "succeeded":
            raise Killed
        return real(id_, to=to, **fields)

    monkeypatch.setattr(service.store, "move", killed)
    with pytest.raises(Killed):
        _run(service, runner)
    monkeypatch.undo()
    assert service.store.job(job.id).status == "running"
    service.store.release(job.id, "cpu-0")
    done = _run(service, runner)
    assert done.status == "succeeded"
    files, _ = service.store.files("me", purpose="fine-tune-results")
    assert [file.id for file in files] == list(done.result_files)
    created = [message for message in service.messages(job) if message.startswith("New fine-tuned model")]
    assert len(created) == 1


def test_a_worker_that_lost_its_job_ends_its_run_and_touches_nothing(service):
    job, runner = service.job(steps=400), _runner(service, lease_seconds=0.4)

    def steal():
        _stepping(service, job)
        with service.store.database.writing() as connection:
            connection.execute("UPDATE jobs SET worker = 'thief', lease_until = 9e9")

    left = _run(service, runner, then=steal)
    assert (left.status, left.worker) == ("running", "thief")
    assert lock_owner(RunFolder(service.runs / job.run_name)) is None, "its run has ended"


def test_a_pause_taken_back_while_the_run_saves_goes_on_at_once(service):
    job = service.job(steps=60)

    class Slow(Local):
        def stop(self, handle, *, hard):
            service.store.want(job.id, "run")  # the user changes their mind at this very moment
            super().stop(handle, hard=hard)

    def pause():
        _stepping(service, job)
        service.store.want(job.id, "pause")

    with_second_thoughts = _runner(service, launcher=Slow())
    done = _run(service, with_second_thoughts, then=pause)
    assert (done.status, done.attempts) == ("succeeded", 1)
    assert not any("goes on from its last checkpoint" in message for message in service.messages(job)), "no death"


class Cluster:
    """A launcher whose tasks go on without us."""

    remote = True

    def __init__(self):
        self.submitted, self.stopped, self.answer = [], [], Status(phase="waiting")

    def files(self, task):
        return {}

    def find(self, task):
        return task.name if self.submitted and self.answer.phase in ("waiting", "running") else None

    def submit(self, task):
        self.submitted.append(task)
        return task.name

    def status(self, handle):
        return self.answer

    def stop(self, handle, *, hard):
        self.stopped.append(hard)
        self.answer = Status(phase="ended", exit_code=130)


def test_a_cluster_goes_on_while_the_service_is_down_and_is_asked_once(service, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    job, cluster = service.job(), Cluster()
    runner = _runner(service, launcher=cluster)

    def stop():
        wait_for(lambda: cluster.submitted)
        runner.stopping.set()

    left = _run(service, runner, then=stop)
    assert (left.status, left.worker) == ("running", None) and cluster.stopped == []
    task = cluster.submitted[0]
    assert task.name == job.id and "canary" not in str(task) and task.secrets == ("HF_TOKEN", "WANDB_API_KEY")

    def end():
        time.sleep(0.2)
        cluster.answer = Status(phase="ended", exit_code=0)

    assert _run(service, _runner(service, launcher=cluster), then=end).status == "succeeded"
    assert len(cluster.submitted) == 1, "found by its name, not submitted again"


def test_a_task_that_a_cluster_lost_is_submitted_again(service, unplanned):
    service.job()
    cluster = Cluster()

    def lose():
        wait_for(lambda: cluster.submitted)
        cluster.answer = Status(phase="ended", exit_code=-9, detail="NODE_FAIL")
        wait_for(lambda: len(cluster.submitted) == 2)
        cluster.answer = Status(phase="ended", exit_code=0)

    assert _run(service, _runner(service, launcher=cluster), then=lose).status == "succeeded"


def test_the_estimate_follows_the_plan_and_then_the_pace(service):
    """By the plan until two steps are logged; then remaining steps x the seconds of one."""
    job = service.job()
    service.store.claim("cpu-0", 20.0)
    now = service.store.now()
    service.store.clock = lambda: float(now)
    place = JobPlace.of(job, home=service.home, runs=service.runs)
    run = place.run.create()
    (run.path / "plan.json").write_text(json.dumps({"time": {"steps": 100, "seconds_per_step": 6.0}}))
    teller = Teller(service.store, job, place, organization="luthier")
    run.event("training_started", step=0, total_steps=100)
    teller.tell()
    assert service.store.job(job.id).planned_seconds == 600.0
    assert service.store.job(job.id).estimated_finish == now + 600
    for step in (1, 2, 3):
        run.metric(step=step, loss=1.0, seconds=10.0 * step)
    teller.tell()
    assert service.store.job(job.id).estimated_finish == now + 97 * 10
    run.metric(step=100, loss=1.0, seconds=1_000.0)
    teller.tell()
    assert service.store.job(job.id).estimated_finish == now


def test_a_log_that_is_read_twice_is_told_once(service):
    """As after a kill between the transaction and what came before it."""
    job = service.job()
    place = JobPlace.of(job, home=service.home, runs=service.runs)
    run = place.run.create()
    run.event("training_started", step=0, total_steps=3)
    run.metric(step=1, loss=1.0)
    run.event("checkpoint_served", step=1, path="served/step-1")
    first = Teller(service.store, job, place, organization="luthier")
    first.tell()
    assert service.messages(job)[-3:] == [
        "Training begins: 3 steps", "Step 1/3: training loss=1.0000", "Checkpoint created at step 1",
    ], "all of it was new at once, and a step still comes before its checkpoint"  # fmt: skip
    count, news = len(service.events(job)), first.progress.news
    with service.store.database.writing() as connection:
        connection.execute("DELETE FROM progress")
    again = Teller(service.store, job, place, organization="luthier")
    again.tell()
    assert len(service.events(job)) == count and (news, again.progress.news) == (3, 0)
    assert len(service.store.checkpoints(job.id)[0]) == 1
    run.event("checkpoint_unserved", step=1)
    again.tell()
    assert service.store.checkpoints(job.id)[0] == []
    assert [model.name for model in service.store.models("me")] == []


@pytest.mark.parametrize(("devices", "verb"), [
    ("", ["run"]), ("GPU-aa", ["run"]), ("0,1", ["launch", "--num-gpus", "2"])
])  # fmt: skip
def test_a_worker_with_several_gpus_launches_several_processes(tmp_path, monkeypatch, devices, verb):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    service, seen = Service(tmp_path, launch={"environment": {}}), []

    class Watching(Cluster):
        remote = False

        def submit(self, task):
            seen.extend(task.command)
            self.answer = Status(phase="ended", exit_code=0)
            return task.name

    service.job()
    _run(service, _runner(service, launcher=Watching()))
    assert seen[:3] == [sys.executable, "-m", "luthier"]
    assert seen[3:-2] == verb and seen[-1] == "--json"


def test_secrets_stay_out_of_a_runs_environment(service, monkeypatch):
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "hf_needed")
    seen = {}

    class Watching(Local):
        def submit(self, task):
            seen.update(task.environment)
            return super().submit(task)

    service.job(steps=2)
    _run(service, _runner(service, launcher=Watching()))
    assert seen["HF_TOKEN"] == "hf_needed" and "LUTHIER_ADMIN_KEY" not in seen


@pytest.mark.skipif(signal.SIGTERM != 15 or not sys.platform.startswith("linux"), reason="Linux")
def test_names_are_never_paths():
    record = JobRecord(id="ftjob-1", owner="x", created_at=0, model="m", base="b", method={}, hyperparameters={},
                       training_file="f", seed=0, run_name="ftjob-1")  # fmt: skip
    place = JobPlace.of(record, home=Path("/h"), runs=Path("/r"))
    assert (place.recipe, place.run.path, place.log) == (
        Path("/h/jobs/ftjob-1/recipe.yaml"), Path("/r/ftjob-1"), Path("/h/logs/ftjob-1.log"),
    )  # fmt: skip
