"""Contract (F28): SIGKILL of server, worker, clerk or run at any point; every accepted job ends exactly once."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from luthier.jobs.states import ALLOWED, ENDED
from tests.jobs.worker.service import Service, stand_in, wait_for


class Server:
    """The service as a process, with a watch on the states that its jobs go through."""

    def __init__(self, service: Service) -> None:
        self.service = service
        (service.home / "settings.json").write_text(service.settings.model_dump_json())
        self.process: subprocess.Popen | None = None
        self.seen: dict[str, list[str]] = {}
        self._watching = True
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def start(self) -> None:
        call = [sys.executable, "-m", "tests.jobs.worker.server", str(self.service.home)]
        self.process = subprocess.Popen(call, cwd=Path(__file__).parents[3])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._watching = False
        self._watch.join()

    def _look(self) -> None:
        while self._watching:
            for job in self.service.store.jobs("*")[0]:
                seen = self.seen.setdefault(job.id, [])
                if not seen or seen[-1] != job.status:
                    seen.append(job.status)
            time.sleep(0.01)

    def of_home(self) -> dict[int, list[str]]:
        """Processes whose command line names this home, by id."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    arguments = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                    state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                except OSError:
                    continue
                if state not in "ZX" and any(str(self.service.home) in argument for argument in arguments):
                    found[int(folder.name)] = arguments
        return found


def _victim(server: Server, chooser: random.Random) -> tuple[str, int] | None:
    """Server, worker, clerk or run, as chance has it."""
    kinds = {"server": [], "worker": [], "clerk": [], "run": []}
    for pid, arguments in server.of_home().items():
        text = " ".join(arguments)
        kind = ("server" if "tests.jobs.worker.server" in text else "clerk" if "--place clerk" in text
                else "worker" if "worker.process" in text else "run")  # fmt: skip
        kinds[kind].append(pid)
    kind = chooser.choices(list(kinds), weights=[1, 2, 1, 3])[0]
    return (kind, chooser.choice(kinds[kind])) if kinds[kind] else None


def _kill_at_random_points(server: Server, jobs, *, points: int, seed: int, pause: float) -> list[str]:
    chooser, killed = random.Random(seed), []
    while len(killed) < points:
        if all(server.service.store.job(job.id).status in ENDED for job in jobs):
            break
        time.sleep(chooser.uniform(0, pause))
        victim = _victim(server, chooser)
        if victim is None:
            continue
        if victim[0] == "server":
            server.kill()
            server.start()
        else:
            try:
                os.kill(victim[1], signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed.append(victim[0])
    return killed


def _each_ended_once(server: Server, jobs, *, steps: int) -> None:
    service = server.service
    for job in jobs:
        now = service.store.job(job.id)
        assert now.status == "succeeded", (now.error, service.messages(job))
        for before, after in zip(server.seen[job.id], server.seen[job.id][1:], strict=False):
            assert after in ALLOWED[before] or after in ENDED or before in ("validating_files", "queued"), server.seen[
                job.id
            ]
        assert "queued" not in server.seen[job.id][server.seen[job.id].index("running") :]
        assert service.messages(job).count("The job has successfully completed") == 1
        marks = [(event.message.split(":")[0].split("/")[0], event.message.split(" ")[2])
                 for event in service.events(job) if event.type == "metrics"]  # fmt: skip
        assert len(marks) == len(set(marks)), "an event is told once"
        trained = [
            event.data["step"]
            for event in service.events(job)
            if "train_loss" in event.data and event.type == "metrics"
        ]
        assert sorted(trained) == list(range(1, steps + 1)), "every step is told"
        assert len(now.result_files) == 1
        rows = service.store.file_path(service.store.file(now.result_files[0])).read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == [str(step) for step in range(1, steps + 1)]
        models = [model for model in service.store.models("me") if model.job_id == job.id and model.kind == "tuned"]
        assert [model.name for model in models] == [now.fine_tuned_model]
    results, _ = service.store.files("me", purpose="fine-tune-results")
    assert len(results) == len(jobs)
    with service.store.database.reading() as connection:
        notices = connection.execute("SELECT job_id, type FROM notices").fetchall()
    assert sorted(row["job_id"] for row in notices) == sorted(job.id for job in jobs), "one notice a job"


def _no_process_is_left(server: Server) -> None:
    wait_for(lambda: not server.of_home(), seconds=30, what="orphans are left")


@pytest.mark.parametrize(
    ("points", "seed"), [(6, 1), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_killed_at_random_points_every_job_ends_once(tmp_path, points, seed):
    """With a stand-in for the run, which is quick to start; the real one is below."""
    service, steps = Service(tmp_path, **stand_in(crashes=50)), 3 * points
    server = Server(service)
    jobs = [service.job(steps=steps) for _ in range(3)]
    server.start()
    try:
        killed = _kill_at_random_points(server, jobs, points=points, seed=seed, pause=0.25)
        wait_for(lambda: all(service.store.job(job.id).status in ENDED for job in jobs), seconds=200)
    finally:
        server.stop()
    assert len(killed) == points, killed
    _each_ended_once(server, jobs, steps=steps)
    for job in jobs:  # no step was lost or done twice
        weights = json.loads((service.runs / job.run_name / "final/weights.json").read_text())
        assert weights == list(range(1, steps + 1))
    _no_process_is_left(server)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_twenty_points_with_real_runs(tmp_path):
    """The same with tiny models; the adapters are bit for bit those of a run that nobody killed."""
    service = Service(tmp_path, crashes=50)
    server = Server(service)
    calm = service.job(steps=40)
    server.start()
    wait_for(lambda: service.store.job(calm.id).status in ENDED, seconds=600)
    jobs = [service.job(steps=40) for _ in range(3)]
    try:
        killed = _kill_at_random_points(server, jobs, points=20, seed=3, pause=12.0)
        wait_for(lambda: all(service.store.job(job.id).status in ENDED for job in jobs), seconds=1800)
    finally:
        server.stop()
    assert len(killed) == 20, killed
    _each_ended_once(server, [calm, *jobs], steps=40)
    wanted = (service.runs / calm.run_name / "final/adapter_model.safetensors").read_bytes()
    for job in jobs:
        assert (service.runs / job.run_name / "final/adapter_model.safetensors").read_bytes() == wanted
    _no_process_is_left(server)


def test_when_the_server_is_killed_its_workers_and_runs_end_and_the_job_goes_on(tmp_path):
    service = Service(tmp_path, **stand_in())
    server = Server(service)
    job = service.job(steps=60)
    server.start()
    try:
        wait_for(lambda: any(event.type == "metrics" for event in service.events(job)))
        server.kill()
        _no_process_is_left(server)
        assert service.store.job(job.id).status == "running", "the job waits for the next server"
        server.start()
        wait_for(lambda: service.store.job(job.id).status in ENDED, seconds=120)
    finally:
        server.stop()
    _each_ended_once(server, [job], steps=60)
    assert any("goes on after step" in message for message in service.messages(job))
