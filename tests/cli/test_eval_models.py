"""Contract: `luthier eval` scores base, tuned, checkpoints and endpoints in one table, with corrected tests."""

import html
import json

import pytest

from tests.cli.calling import caller, make_world, write_recipe, write_rows
from tests.endpoint.server import ScriptedServer, says
from tests.evaluate.harness.support import sums_task
from tests.support.tiny import conversations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("eval_models"))
    task = {"name": "words", "path": str(folder / "test.jsonl"), "metric": "exact", "max_new_tokens": 3}
    write_recipe(folder / "recipe.yaml", folder, evaluate={"tasks": [task], "compare_with_base": False})
    (folder / "tasks.yaml").write_text(json.dumps({"tasks": [task]}), "utf-8")
    return folder


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return caller(monkeypatch, capfd)


def test_base_tuned_checkpoint_and_endpoint_in_one_table(world, call, tmp_path):
    recipe = world / "recipe.yaml"
    assert call("train", recipe).code == 0
    (checkpoint,) = sorted((world / "run" / "checkpoints").iterdir())[-1:]
    with ScriptedServer(always=says("never right")) as server:
        said = call(
            "eval", recipe, "--base", "--tuned", "--checkpoint", checkpoint, "--endpoint", server.url, "--model", "far",
            "--json", "--out", tmp_path / "scores.json",
        )  # fmt: skip
    assert said.code == 0, said.err
    value = said.json
    assert [model["model"] for model in value["models"]] == ["base", "tuned", str(checkpoint), "far"]
    assert value["comparison"]["tests"] == len(value["comparison"]["pairs"]) == 6
    tuned, kept = value["models"][1]["tasks"][0], value["models"][2]["tasks"][0]
    assert [row["output"] for row in tuned["rows"]] == [row["output"] for row in kept["rows"]], "the last step is final"
    assert value["models"][3]["usage"]["requests"] > 0
    assert json.loads((tmp_path / "scores.json").read_text()) == value


def test_a_file_of_tasks_and_two_models_of_one_endpoint(world, call):
    def reply(body):
        return "good" if body["model"] == "a" else "bad"

    with ScriptedServer(always=says(reply)) as server:
        names = ("--endpoint", server.url, "--model", "a", "--model", "b")
        prices = ("--input-price", "1", "--output-price", "2", "--budget", "5")
        said = call("eval", world / "tasks.yaml", *names, *prices)
    assert said.code == 0, said.err
    for part in ("words", "p, Holm", "a: ", "b: ", "$0.00", "corrected by Holm"):
        assert part in said.out, part


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--endpoint", "http://localhost:1/v1"), "each endpoint needs the name of its model"),
        (("--endpoint", "localhost", "--model", "a"), "is no http(s) URL"),
        (("--endpoint", "http://localhost:1/v1", "--model", "a", "--model", "a"), "scored twice"),
        (("--budget", "1"), "--budget is for --endpoint"),
        (("--checkpoint", "nowhere"), "there is no checkpoint nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(world, call, arguments, said):
    answer = call("eval", world / "recipe.yaml", *arguments)
    assert answer.code == 2, answer
    assert said in answer.err


def test_a_file_of_tasks_alone_needs_an_endpoint(world, call, tmp_path):
    answer = call("eval", world / "tasks.yaml")
    assert answer.code == 2 and "the file has tasks only" in answer.err
    (tmp_path / "bad.yaml").write_text("tasks:\n  - {name: a, path: nowhere.jsonl, metric: exact, mtric: 1}\n")
    answer = call("eval", tmp_path / "bad.yaml", "--endpoint", "http://localhost:1/v1", "--model", "m")
    assert answer.code == 2 and "bad.yaml:2" in answer.err and "mtric" in answer.err


def prefers_longer(body):
    material = body["messages"][1]["content"]
    a, b = (len(material.split(f"answer {name}]\n")[1].split("\n[")[0]) for name in "AB")
    return json.dumps({"reason": "longer", "winner": "A" if a > b else "B" if b > a else "tie"})


def judge_of(server):
    return {"base_url": server.url, "model": "j", "compare": ["pairwise"], "rubric": "Longer is better."}


def test_a_run_and_eval_ask_the_judge(world, call, tmp_path):
    task = {"name": "words", "path": str(world / "test.jsonl"), "metric": "exact", "max_new_tokens": 3}
    with ScriptedServer(always=says(prefers_longer)) as server:
        judged = {"tasks": [task], "judge": judge_of(server)}
        recipe = write_recipe(tmp_path / "recipe.yaml", world, evaluate=judged, output_dir=str(tmp_path / "run"))
        said = call("run", recipe)
        assert said.code == 0, said.err
        value = json.loads((tmp_path / "run" / "eval" / "judge.json").read_text())
        pairs = value["tasks"][0]["pairwise"]
        assert pairs["n"] == len(pairs["rows"]) and "judged in pairs" in said.err
        page = (tmp_path / "run" / "report.html").read_text()
        assert all(line.split(";")[0] in html.unescape(page) for line in value["said"])
        again = call("eval", recipe, "--base", "--tuned", "--judge", "--json")
    verdict = again.json["judged"][0]
    assert (verdict["first"], verdict["second"]) == ("base", "tuned")
    assert verdict["tasks"][0]["pairwise"] == pairs and verdict["usage"]["requests"] == 0, "all from the cache"


def test_a_judge_is_refused_without_a_section_or_a_second_model(world, call):
    answer = call("eval", world / "recipe.yaml", "--base", "--tuned", "--judge")
    assert answer.code == 2 and "evaluate.judge" in answer.err


def test_baseline_tries_prompts_on_every_model_and_says_what_follows(world, call, tmp_path):
    """The served model is right only when it sees examples: the advice is to prompt first."""
    rows = conversations(16, seed=77)
    task = {"name": "words", "path": str(write_rows(tmp_path / "rows.jsonl", rows)), "metric": "exact"}
    recipe = write_recipe(tmp_path / "recipe.yaml", world, evaluate={"tasks": [task | {"max_new_tokens": 3}]})
    right = {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in rows}

    def reply(body):
        turns = body["messages"]
        return right[turns[-1]["content"]] if sum(turn["role"] == "assistant" for turn in turns) else "no"

    with ScriptedServer(always=says(reply)) as server:
        arguments = ("--endpoint", server.url, "--model", "far", "--base", "--baseline", "--shots", "2")
        said = call("eval", recipe, *arguments, "--json")
        table = call("eval", recipe, *arguments)
    assert said.code == 0, said.err
    value = said.json
    names = ["base, 0-shot", "base, 2-shot", "far, 0-shot", "far, 2-shot"]
    assert [model["model"] for model in value["models"]] == names
    scores = {model["model"]: model["tasks"][0]["score"] for model in value["models"]}
    assert (scores["far, 0-shot"], scores["far, 2-shot"]) == (0.0, 1.0)
    texts = [one["text"] for one in value["advice"] if one["rule"] == 1]
    assert len(texts) == 1 and texts[0].startswith("far: 2-shot reaches 1.000")
    assert "Try prompting first" in table.out and "(rule 1)" in table.out
    refused = call("eval", world / "recipe.yaml", "--shots", "2")
    assert refused.code == 2 and "are for --baseline" in refused.err


def test_a_run_with_the_harness_and_the_forgetting_suite_is_reused_until_its_rows_change(
    world, call, tmp_path, monkeypatch
):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    tasks = [
        {"name": "builtin:forgetting", "limit": 2},
        {"lm_eval": sums_task(tmp_path), "limit": 2, "max_new_tokens": 4},
    ]
    recipe = write_recipe(tmp_path / "recipe.yaml", world, evaluate={"tasks": tasks}, output_dir=str(tmp_path / "run"))
    said = call("run", recipe)
    assert said.code == 0, said.err
    assert "general skill (arithmetic, copying, format, facts; 8 rows)" in said.err
    comparison = json.loads((tmp_path / "run" / "eval" / "comparison.json").read_text())
    assert comparison["forgetting"]["said"] in html.unescape((tmp_path / "run" / "report.html").read_text())
    assert comparison["forgetting"]["n"] == 8
    assert [task["name"] for task in comparison["tasks"]][-2:] == ["sums.strict-match", "sums.flexible-extract"]
    again = call("run", recipe, "--json").json
    assert set(again["reused"]) == set(again["stages"])
    table = call("compare", tmp_path / "run")
    assert "general skill" in table.out and "sums.strict-match" in table.out
    sums_task(tmp_path, rows=7, text="{{question}} ?")
    changed = call("run", recipe, "--json").json
    assert {"baseline", "evaluate"} <= set(changed["stages"]) - set(changed["reused"])
    assert "train" in changed["reused"]
