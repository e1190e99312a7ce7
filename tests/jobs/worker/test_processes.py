"""Contract: places have one owner; processes that die are started again; the clerk checks files and tells webhooks."""

import json
import os
import signal
import stat
import threading
import time

import pytest

from luthier.jobs.worker.clerk import check_next, run_clerk
from luthier.jobs.worker.places import SETTINGS, find_gpus, places
from luthier.jobs.worker.process import give_back, own_place
from luthier.jobs.worker.settings import WorkerSettings
from luthier.jobs.worker.supervisor import Supervisor
from tests.jobs.test_webhooks import SECRET, Receiver
from tests.jobs.worker.service import Service, stand_in, wait_for


@pytest.fixture
def service(tmp_path):
    return Service(tmp_path, **stand_in())


def test_one_worker_a_gpu_one_without_and_as_many_as_a_cluster_may_have(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []
    assert [name for name, _ in places(WorkerSettings())] == ["cpu-0", "clerk"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU-aaaa; echo GPU-bbbb\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert places(WorkerSettings())[:2] == [
        ("gpu-0", {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}), ("gpu-1", {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"})
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert find_gpus() == ["3"], "as the operator limits it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus() == []
    slurm = WorkerSettings(launch={"kind": "slurm", "slots": 3})
    assert [name for name, _ in places(slurm)] == ["slurm-0", "slurm-1", "slurm-2", "clerk"]


def test_a_place_has_one_owner_at_a_time(tmp_path):
    stopping = threading.Event()
    with own_place(tmp_path, "gpu-0", stopping) as first:
        assert first
        threading.Timer(0.3, stopping.set).start()
        with own_place(tmp_path, "gpu-0", stopping) as second:
            assert second is False
    with own_place(tmp_path, "gpu-0", threading.Event()) as again:
        assert again


def test_what_a_dead_worker_held_is_free_at_once_for_its_successor(service):
    job = service.job()
    service.store.claim("cpu-0", 3_600.0)
    assert service.store.claim("cpu-0", 3_600.0) is None, "held for an hour"
    assert give_back(service.store, "cpu-0") == [job.id]
    assert service.store.claim("cpu-0", 3_600.0).attempts == 2


def test_processes_that_die_are_started_again_and_end_with_the_supervisor(service):
    supervisor = Supervisor(service.home, service.settings)
    supervisor.start()
    try:
        assert stat.S_IMODE((service.home / SETTINGS).stat().st_mode) == 0o600
        assert WorkerSettings.model_validate_json((service.home / SETTINGS).read_text()) == service.settings
        before = supervisor.pids()
        assert sorted(before) == ["clerk", "cpu-0"] and supervisor.workers == 1
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: sorted(supervisor.pids()) == ["clerk", "cpu-0"] and supervisor.pids() != before)
        after = supervisor.pids()
        assert not set(after.values()) & set(before.values())
    finally:
        supervisor.stop(seconds=20)
    assert supervisor.pids() == {}


def test_the_clerk_checks_files_and_knows_the_hyperparameters(tmp_path):
    service = Service(tmp_path)
    job = service.job(checked=False)
    assert check_next(service.store, service.settings) is True
    now = service.store.job(job.id)
    assert (now.status, now.worker) == ("queued", None)
    assert any("rows" in message for message in service.messages(job)), "what was found is told"
    assert check_next(service.store, service.settings) is False


def test_bad_files_fail_the_job_with_line_numbers(tmp_path):
    service = Service(tmp_path)
    rows = [json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})] * 12
    rows[4] = '{"messages": 7}'
    service.file = service.store.add_file("me", "bad.jsonl", "fine-tune", ["\n".join(rows).encode()])
    job = service.job(checked=False)
    check_next(service.store, service.settings)
    now = service.store.job(job.id)
    assert now.status == "failed" and now.error["code"] == "invalid_training_file"
    assert "line 5" in now.error["message"] and now.error["param"] == "training_file"
    assert any(event.level == "error" for event in service.events(job))


def test_a_job_that_is_cancelled_while_its_files_are_read_stays_cancelled(service, monkeypatch):
    job = service.job(checked=False)
    real = service.store.claim_check

    def claim_and_cancel(worker, lease_s):
        record = real(worker, lease_s)
        if record is not None:
            service.store.want(record.id, "cancel")
        return record

    monkeypatch.setattr(service.store, "claim_check", claim_and_cancel)
    assert check_next(service.store, service.settings) is True
    assert service.store.job(job.id).status == "cancelled"


def test_a_fault_while_files_are_checked_fails_that_job_alone(service, monkeypatch, capsys):
    job = service.job(checked=False)
    monkeypatch.setattr("luthier.jobs.worker.clerk.check_job", lambda *arguments, **keywords: 1 / 0)
    assert check_next(service.store, service.settings) is True
    assert service.store.job(job.id).error["code"] == "server_error"
    assert "Traceback" in capsys.readouterr().err


def test_the_clerk_sends_webhooks_and_what_is_left_at_its_end(service):
    receiver = Receiver()
    try:
        hook = {"url": receiver.url, "secret": SECRET}
        settings = WorkerSettings.model_validate({**service.settings.model_dump(), "webhooks": [hook]})
        stopping = threading.Event()
        clerk = threading.Thread(target=run_clerk, args=(service.store, settings, stopping))
        first, last = service.job(), service.job()
        clerk.start()
        service.store.want(first.id, "cancel")
        wait_for(lambda: receiver.got)
        service.store.want(last.id, "cancel")
        stopping.set()
        clerk.join(30)
        assert not clerk.is_alive()
        told = [json.loads(body)["data"]["id"] for _, _, body in receiver.got]
        assert told == [first.id, last.id]
    finally:
        receiver.close()


def test_jobs_in_line_have_an_estimate(service):
    service.job()
    running = service.store.claim("cpu-0", 60.0)
    service.store.update(running.id, estimated_finish=service.store.now() + 100)
    waiting = service.job()
    service.store.update(waiting.id, planned_seconds=50.0)
    stopping = threading.Event()
    clerk = threading.Thread(target=run_clerk, args=(service.store, service.settings, stopping))
    clerk.start()
    try:
        wait_for(lambda: service.store.job(waiting.id).estimated_finish is not None)
        assert abs(service.store.job(waiting.id).estimated_finish - time.time() - 150) < 30
    finally:
        stopping.set()
        clerk.join(30)
