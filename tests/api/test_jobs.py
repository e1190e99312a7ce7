"""Contract: the official client drives fine-tuning end to end, unchanged, against real runs on a tiny model."""

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from luthier.api.service import worker_settings
from luthier.jobs.store import Store
from luthier.jobs.worker.supervisor import Supervisor
from tests.api.serving import api, until
from tests.jobs.making import job_record
from tests.support.tiny import conversations, save_tiny

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
HOSTED = "gpt-4o-mini-2024-07-18"
SERVICE = {"model": {"dtype": "float32"}, "data": {"max_length": 256}, "train": {"save_steps": 2}}
SMALL = {"method": {"name": "lora", "r": 4}, "train": {"learning_rate": 1e-3}}
ENDED = ("succeeded", "failed", "cancelled")


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def preferences(n=12):
    return [
        {"input": {"messages": row["messages"][:1]}, "preferred_output": row["messages"][1:],
         "non_preferred_output": [{"role": "assistant", "content": "no"}]}
        for row in conversations(n, seed=3)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The server and one worker; keys of two owners."""
    folder = tmp_path_factory.mktemp("jobs")
    store = Store.open(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))  # noqa: PTH109
        workers = {"poll_seconds": 0.1, "grace_seconds": 60.0}
        with api(
            folder / "home",
            store=store,
            models={HOSTED: save_tiny(folder / "tiny")},
            jobs={"workers": workers, "recipe": SERVICE},
        ) as server:
            settings = worker_settings(server.settings, folder / "runs", None)
            with Supervisor(folder / "home", settings) as supervisor:
                server.supervisor = supervisor
                yield server


@pytest.fixture(scope="module")
def client(service):
    with service.client(_strict_response_validation=True, timeout=120) as one:
        yield one


def run_script(name, service, rows):
    """A script of docs/examples as its customer runs it; only the port is this test's."""
    rows.write_bytes(jsonl(conversations(16)))
    text = (EXAMPLES / name).read_text("utf-8")
    script = rows.parent / name
    script.write_text(text.replace("http://127.0.0.1:8000", service.url), "utf-8")
    environment = {**os.environ, "OPENAI_API_KEY": "sk-of-before"}
    if service.url not in script.read_text("utf-8"):
        environment["OPENAI_BASE_URL"] = f"{service.url}/v1"
    return subprocess.Popen(
        [sys.executable, str(script), str(rows)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def ended(client, job_id, seconds=270):
    return until(lambda: (job := client.fine_tuning.jobs.retrieve(job_id)).status in ENDED and job, seconds)


@pytest.fixture(scope="module")
def files(client):
    rows, pairs = jsonl(conversations(16)), jsonl(preferences())
    names = {}
    for name, content in (("rows", rows), ("pairs", pairs), ("held out", jsonl(conversations(6, seed=9)))):
        made = client.files.create(file=(f"{name}.jsonl", content), purpose="fine-tune")
        names[name] = client.files.wait_for_processing(made.id, poll_interval=0.01).id
    return names


@pytest.fixture(scope="module")
def script(service, client, files):
    """The migrated script of docs/examples under way: an upload and a job of the old style."""
    process = run_script("finetune_luthier.py", service, service.folder / "tickets.jsonl")
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def made(client, files, script):
    """Jobs of both methods and both styles; the last ones wait behind the first."""
    jobs = client.fine_tuning.jobs
    first = until(lambda: next(iter(jobs.list(metadata={"team": "support"})), None), 60)
    dpo = jobs.create(
        model=HOSTED, training_file=files["pairs"], metadata={"team": "a", "kind": "dpo"}, seed=7,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": 6}}},
        extra_body={"luthier": SMALL},
    )  # fmt: skip
    waiting = jobs.create(
        model=HOSTED, training_file=files["rows"], validation_file=files["held out"], metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 2}}},
        suffix="later", extra_body={"luthier": {"method": {"r": 4}}},
    )  # fmt: skip
    return {"first": first, "dpo": dpo, "waiting": waiting}


def test_created_jobs_say_what_was_asked(made):
    first, dpo, waiting = made["first"], made["dpo"], made["waiting"]
    assert first.id.startswith("ftjob-") and first.object == "fine_tuning.job" and first.model == HOSTED
    assert (first.hyperparameters.n_epochs, first.hyperparameters.batch_size) == (1, 4)
    assert first.method.type == "supervised" and first.method.supervised.hyperparameters.n_epochs == 1
    assert first.fine_tuned_model is None and first.finished_at is None and first.result_files == []
    assert first.to_dict()["user_provided_suffix"] == "tickets" and first.metadata == {"team": "support"}
    assert dpo.method.type == "dpo" and dpo.method.dpo.hyperparameters.beta == 0.2 and dpo.seed == 7
    assert dpo.status == "validating_files" and dpo.to_dict()["luthier"] == SMALL, "extra_body comes back"
    assert waiting.method.supervised.hyperparameters.batch_size == 2 and waiting.hyperparameters.batch_size == 2


def test_lists_are_paged_newest_first_and_filtered(client, made):
    ids = [made[name].id for name in ("waiting", "dpo", "first")]
    for limit in (1, 2, 20):
        assert [job.id for job in client.fine_tuning.jobs.list(limit=limit) if job.id in ids] == ids
    page = client.fine_tuning.jobs.list(limit=2)
    assert page.has_more is True and page.has_next_page()
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a"})] == ids[:2]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a", "kind": "dpo"}, limit=1)] == [ids[1]]
    assert client.fine_tuning.jobs.list(metadata={"team": "none"}).data == []


def test_a_waiting_job_is_cancelled_at_once_and_stays_so(client, made):
    jobs = client.fine_tuning.jobs
    cancelled = jobs.cancel(made["waiting"].id)
    assert ended(client, cancelled.id).status == "cancelled" and jobs.retrieve(cancelled.id).finished_at
    assert jobs.cancel(cancelled.id).status == "cancelled", "asked again, the same"
    for call in (jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError) as conflict:
            call(cancelled.id)
        assert conflict.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.ConflictError, match="needed by job"):
        client.files.delete(made["dpo"].training_file)


def test_malformed_lines_fail_the_job_with_their_numbers(client):
    rows = [json.dumps(row) for row in conversations(14)]
    rows[2], rows[6] = '{"messages": [', json.dumps({"messages": [{"role": "king", "content": "x"}]})
    bad = client.files.create(file=("bad.jsonl", "\n".join(rows).encode()), purpose="fine-tune")
    job = ended(client, client.fine_tuning.jobs.create(model=HOSTED, training_file=bad.id).id)
    assert job.status == "failed" and job.error.code == "invalid_training_file" and job.error.param == "training_file"
    assert "line 3" in job.error.message and "line 7" in job.error.message and "bad.jsonl" in job.error.message
    errors = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.level == "error"]
    assert errors and "line 3" in errors[0].message
    few = client.files.create(file=("few.jsonl", jsonl(conversations(3))), purpose="fine-tune")
    job = ended(client, client.fine_tuning.jobs.create(model=HOSTED, training_file=few.id).id)
    assert job.status == "failed" and "at least 10" in job.error.message


def test_the_script_of_the_docs_trains_and_its_models_answer(service, client, script, made):
    said, _ = script.communicate(timeout=240)
    assert script.returncode == 0, said
    job = client.fine_tuning.jobs.retrieve(made["first"].id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith(f"ft:{HOSTED}:luthier:tickets:") and job.trained_tokens > 0
    assert f"job {job.id}" in said and f"{job.fine_tuned_model} says:" in said and "ckpt-step-" in said
    assert job.created_at <= job.finished_at
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)
    assert events[0].message == "The job has successfully completed" and events[-1].message.startswith("Created")
    metrics = [event for event in events if event.type == "metrics"]
    assert {event.data["step"] for event in metrics} >= {1, 4}
    assert all("train_loss" in event.data for event in metrics)
    # Checkpoints: newest first, each a model.
    page = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [one.step_number for one in page] == [4, 2]
    assert page.to_dict()["first_id"] == page.data[0].id and page.to_dict()["last_id"] == page.data[-1].id
    assert [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)] == [4, 2]
    assert page.data[0].metrics.train_loss > 0 and page.data[0].metrics.step == 4
    names = {model.id for model in client.models.list()}
    said = {}
    for name in (HOSTED, job.fine_tuned_model, *(one.fine_tuned_model_checkpoint for one in page)):
        assert name in names
        answer = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "time"}], temperature=0, max_tokens=8, logprobs=True
        )
        said[name] = tuple(token.logprob for token in answer.choices[0].logprobs.content)
        assert answer.model == name
    base, tuned, last, earlier = said.values()
    assert tuned == pytest.approx(last, abs=1e-4), "the last checkpoint is the model"
    for one in (tuned, earlier):
        assert base != pytest.approx(one, abs=1e-4)
    assert tuned != pytest.approx(earlier, abs=1e-4)
    # The result file is plain CSV.
    text = client.files.content(job.result_files[0]).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0])[:2] == ["step", "train_loss"] and [row["step"] for row in rows][-1] == "4"
    assert client.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"
    run = service.folder / "runs" / job.to_dict()["run"]
    assert (run / "recipe.yaml").is_file() and (run / "final").is_dir(), "a run folder as the command line writes it"


def test_dpo_succeeds_and_the_model_and_files_are_deleted(client, made):
    job = ended(client, made["dpo"].id)
    assert job.status == "succeeded", job.error
    name = job.fine_tuned_model
    assert client.models.retrieve(name).id == name
    assert client.models.delete(name).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "time"}])
    assert client.files.delete(job.training_file).deleted is True
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name, "the job remembers"


def test_creates_are_made_once(service, client, files):
    """With a key of its own, or when the client says that it asks again."""
    before = len(list(client.fine_tuning.jobs.list()))
    body = {"model": HOSTED, "training_file": files["rows"], "seed": 5}

    def create(headers, **change):
        return client.fine_tuning.jobs.create(**{**body, **change}, extra_headers=headers)

    first = create({"Idempotency-Key": "k-1"})
    assert create({"Idempotency-Key": "k-1"}).id == first.id
    with pytest.raises(openai.APIStatusError):
        create({"Idempotency-Key": "k-1"}, seed=6)
    second, third = create({}), create({})
    assert len({first.id, second.id, third.id}) == 3, "two wishes are two jobs"
    assert create({"x-stainless-retry-count": "1"}).id == third.id
    for job in (first, second, third):
        client.fine_tuning.jobs.cancel(job.id)
    assert len(list(client.fine_tuning.jobs.list())) == before + 3
    for bad in ("", "x" * 256):
        with pytest.raises((openai.BadRequestError, openai.APIConnectionError)):
            create({"Idempotency-Key": bad})


def test_the_async_client_does_the_same(service, files):
    async def story():
        async with service.async_client(_strict_response_validation=True) as client:
            job = await client.fine_tuning.jobs.create(
                model=HOSTED, training_file=files["rows"], metadata={"x": "async"}
            )
            found = [one.id async for one in client.fine_tuning.jobs.list(metadata={"x": "async"}, limit=1)]
            cancelled = await client.fine_tuning.jobs.cancel(job.id)
            events = [event.message async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
            with pytest.raises(openai.NotFoundError):
                await client.fine_tuning.jobs.retrieve("ftjob-none")
            return job, found, cancelled, events

    job, found, cancelled, events = asyncio.run(story())
    assert found == [job.id] and cancelled.id == job.id and events[-1].startswith("Created")


def test_wrong_ids_models_and_keys(service, client, files):
    jobs = client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, lambda one: jobs.list_events(one).data,
                 lambda one: jobs.checkpoints.list(one).data):  # fmt: skip
        with pytest.raises(openai.NotFoundError) as missing:
            call("ftjob-000000000000000000000000")
        assert missing.value.code and missing.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError) as model:
        jobs.create(model="gpt-5-none", training_file=files["rows"])
    assert model.value.param == "model" and HOSTED in model.value.message
    with pytest.raises(openai.BadRequestError) as file:
        jobs.create(model=HOSTED, training_file="file-none")
    assert file.value.param == "training_file"
    with pytest.raises(openai.BadRequestError) as key:
        jobs.create(model=HOSTED, training_file=files["rows"], extra_body={"luthier": {"train": {"learning_rat": 1}}})
    assert key.value.param == "luthier.train.learning_rat" and "learning_rate" in key.value.message


def test_before_and_after_differ_in_one_line():
    before, after = (
        (EXAMPLES / f"finetune_{name}.py").read_text("utf-8").splitlines() for name in ("hosted", "luthier")
    )
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("client = OpenAI()", 'client = OpenAI(base_url="http://127.0.0.1:8000/v1")')]


def test_pause_resume_and_cancel_reach_the_worker_and_back(tmp_path):
    """The worker's part is played through the store; `test_slow.py` does it with a real one."""
    with api(tmp_path / "home", models={HOSTED: tmp_path}) as server:
        client, store = server.client(), server.store
        rows = client.files.create(file=("rows.jsonl", jsonl(conversations(12))), purpose="fine-tune")
        record = job_record(store, rows.id, "local", model=HOSTED)
        job = store.create_job(record)[0]
        jobs = client.fine_tuning.jobs
        with pytest.raises(openai.ConflictError):
            jobs.pause(job.id)
        store.move(job.id, to="queued")
        store.claim("w", 60)
        assert jobs.retrieve(job.id).status == "running" and store.job(job.id).wanted == "run"
        jobs.pause(job.id)
        assert store.beat(job.id, "w", 60).wanted == "pause"
        store.move(job.id, to="paused", by="w")
        assert jobs.retrieve(job.id).status == "paused"
        jobs.resume(job.id)
        assert store.claim("w", 60).id == job.id and jobs.retrieve(job.id).status == "running"
        jobs.cancel(job.id)
        assert store.beat(job.id, "w", 60).wanted == "cancel"
        store.move(job.id, to="cancelled", by="w")
        ended = jobs.retrieve(job.id)
        assert ended.status == "cancelled" and ended.finished_at
        messages = [event.message for event in jobs.list_events(job.id)]
        assert messages[0] == "Fine-tuning job cancelled" and "Fine-tuning job paused" in messages
