"""The same contracts with a real model (SmolLM2 on quickstart rows) and a real worker: minutes."""

import json
import os

import pytest

from luthier.api.service import worker_settings
from luthier.jobs.settings import EMBEDDED
from luthier.jobs.store import Store
from luthier.jobs.worker.supervisor import Supervisor
from luthier.quickstart.tickets import make_tickets
from tests.api.serving import api, until
from tests.api.test_jobs import ENDED, HOSTED, run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    store = Store.open(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))  # noqa: PTH109
        jobs = {"workers": {"poll_seconds": 0.1}, "recipe": {"data": {"max_length": 256}, "train": {"save_steps": 4}}}
        with (
            api(folder / "home", store=store, models={HOSTED: EMBEDDED}, jobs=jobs) as server,
            Supervisor(folder / "home", worker_settings(server.settings, folder / "runs", None)),
        ):
            yield server


@pytest.fixture(scope="module")
def client(service):
    with service.client(timeout=300) as one:
        yield one


@pytest.fixture(scope="module")
def tickets(client, service):
    text = "".join(json.dumps(row) + "\n" for row in make_tickets(32, seed=1, split="train"))
    return client.files.create(file=("tickets.jsonl", text.encode()), purpose="fine-tune").id


def events(client, job):
    return [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]


def steps(client, job):
    found = [event.data["step"] for event in client.fine_tuning.jobs.list_events(job.id, limit=100)
             if event.type == "metrics"]  # fmt: skip
    return found[::-1]


def test_a_job_is_paused_resumed_and_ends_as_one(client, tickets):
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=HOSTED, training_file=tickets, hyperparameters={"n_epochs": 1, "batch_size": 4}, seed=3)
    until(lambda: len(steps(client, job)) >= 2, 300, pause=0.2)
    jobs.pause(job.id)
    paused = until(lambda: (now := jobs.retrieve(job.id)).status == "paused" and now, 120)
    done = len(steps(client, job))
    assert 2 <= done < 8 and paused.finished_at is None
    assert jobs.pause(job.id).status == "paused", "asked again, the same"
    jobs.resume(job.id)
    ended = until(lambda: (now := jobs.retrieve(job.id)).status in ENDED and now, 1200, pause=0.5)
    assert ended.status == "succeeded", ended.error
    assert steps(client, job) == list(range(1, 9)), "every step once, in order"
    said = events(client, job)
    assert "Fine-tuning job paused" in said and "Fine-tuning job resumed" in said
    asked = {"messages": make_tickets(1, seed=2, split="test")[0]["messages"][:-1], "max_tokens": 24}
    answers = {
        name: client.chat.completions.create(model=name, temperature=0, **asked).choices[0].message.content
        for name in (HOSTED, ended.fine_tuned_model)
    }
    assert answers[HOSTED] != answers[ended.fine_tuned_model]


def test_a_running_job_is_cancelled(client, tickets):
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=HOSTED, training_file=tickets, hyperparameters={"n_epochs": 50, "batch_size": 4})
    until(lambda: steps(client, job), 300, pause=0.2)
    jobs.cancel(job.id)
    ended = until(lambda: (now := jobs.retrieve(job.id)).status in ENDED and now, 60)
    assert ended.status == "cancelled" and ended.fine_tuned_model is None and ended.result_files == []


def test_the_script_before_the_change_runs_with_a_variable(service):
    process = run_script("finetune_hosted.py", service, service.folder / "before.jsonl")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "says:" in said and "ckpt-step-4" in said
