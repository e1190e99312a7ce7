"""Contract: an endpoint is asked the rows' messages and scored as a model of this machine is."""

import json

import pytest

from luthier.endpoint.client import Endpoint
from luthier.endpoint.settings import EndpointSettings
from luthier.evaluate.compare import compare_results
from luthier.evaluate.run import run_tasks
from luthier.evaluate.served import run_served
from luthier.evaluate.tasks import load_tasks
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import RecipeError, RunFailed
from tests.endpoint.server import ScriptedServer, says
from tests.support.tiny import tiny_model, tiny_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def sums(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}+1"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(10)
    ]
    shots = [{"messages": [{"role": "user", "content": "50+1"}, {"role": "assistant", "content": "51"}]}]
    keys = {"path": write(tmp_path / "rows.jsonl", rows), "fewshot_path": write(tmp_path / "shots.jsonl", shots)}
    return load_tasks([TaskSpec(name="sums", metric="number", num_fewshot=1, max_new_tokens=9, system="Add.", **keys)])


def adds(body):
    left = int(body["messages"][-1]["content"].split("+")[0])
    return f"that is {left + 1}" if left % 2 else "no idea"


def settings(server, **changes):
    return EndpointSettings(base_url=server.url, model="m", **changes)


def test_messages_examples_and_limits_are_sent_and_answers_scored(sums):
    with ScriptedServer(always=says(adds)) as server, Endpoint(settings(server)) as endpoint:
        (scored,) = run_served(endpoint, sums)
    assert [row["score"] for row in scored.rows] == [0, 1] * 5
    assert (scored.score, scored.new_tokens) == (0.5, 50)
    bodies = {json.dumps(seen["body"]["messages"]): seen["body"] for seen in server.seen}
    assert len(bodies) == 10
    for body in bodies.values():
        assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "user"]
        assert (body["max_tokens"], body["temperature"], body["model"]) == (9, 0.0, "m")
    assert scored.rows[0]["messages"][0] == {"role": "system", "content": "Add."}


def test_an_endpoint_and_a_local_model_are_compared_on_the_same_rows_only(sums, tmp_path):
    (local,) = run_tasks(tiny_model(), tiny_tokenizer(), sums)
    with ScriptedServer(always=says(adds)) as server, Endpoint(settings(server)) as endpoint:
        (served,) = run_served(endpoint, sums)
        (task,) = compare_results([local], [served]).tasks
        assert (task.after, task.n) == (0.5, 10)
        others = load_tasks([TaskSpec(name="sums", metric="number", path=str(tmp_path / "rows.jsonl"))])
        with pytest.raises(RunFailed, match="number of worked examples"):
            compare_results([local], run_served(endpoint, others))


def test_answers_are_kept_and_cost_nothing_the_second_time(sums, tmp_path):
    with ScriptedServer(always=says(adds, prompt_tokens=10, completion_tokens=5)) as server:
        for attempt in range(2):
            priced = settings(server, input_price=1.0, output_price=2.0)
            with Endpoint(priced, cache_dir=tmp_path / "cache") as endpoint:
                run_served(endpoint, sums)
                usage = endpoint.usage()
            assert (usage.requests, usage.cached) == ((10, 0), (0, 10))[attempt]
            assert usage.cost_usd == pytest.approx((10 * (10 + 2 * 5) / 1e6, 0.0)[attempt])


def test_what_a_chat_server_cannot_be_asked_is_refused_at_once(tmp_path):
    raw = write(tmp_path / "raw.jsonl", [{"prompt": "a", "completion": "b"}])
    specs = [
        TaskSpec(name="raw", path=raw, metric="exact"),
        TaskSpec(name="nll", path=raw, metric="loss"),
    ]
    with ScriptedServer() as server, Endpoint(settings(server)) as endpoint, pytest.raises(RecipeError) as caught:
        run_served(endpoint, load_tasks(specs))
    assert [problem.code for problem in caught.value.problems] == ["E549", "E549"]
    assert server.seen == []


def test_tasks_of_the_harness_are_asked_as_messages(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from tests.evaluate.harness.support import choice_task, sums_task

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def says_number(body):
        return f"#### {int(body['messages'][-1]['content'].split('What is ')[1].split(' ')[0]) + 1}"

    with ScriptedServer(always=says(says_number)) as server, Endpoint(settings(server)) as endpoint:
        tasks = load_tasks([TaskSpec.model_validate({"lm_eval": sums_task(tmp_path), "limit": 3})])
        results = run_served(endpoint, tasks)
        assert [(one.name, one.score) for one in results] == [
            ("sums.strict-match", 1.0),
            ("sums.flexible-extract", 1.0),
        ]
        assert [turn["role"] for turn in server.seen[0]["body"]["messages"]] == ["user", "assistant", "user"]
        choices = load_tasks([TaskSpec.model_validate({"lm_eval": choice_task(tmp_path)})])
        with pytest.raises(RecipeError, match="does not tell them"):
            run_served(endpoint, choices)
