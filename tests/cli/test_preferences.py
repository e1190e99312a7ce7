"""Contract: `data check|show` and `init` say what rows of preferences are, on a terminal and as JSON."""

import json

import pytest

from tests.cli.calling import caller, make_world, write_recipe, write_rows
from tests.data.preferring import pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("preferences"))
    write_rows(folder / "pairs.jsonl", pairs(16))
    data = {"train": [{"path": str(folder / "pairs.jsonl")}]}
    write_recipe(folder / "recipe.yaml", folder, data=data, objective={"name": "dpo"})
    return folder


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return caller(monkeypatch, capfd)


def test_check_says_lengths_bias_and_what_sharing_saves(world, call):
    said = call("data", "check", world / "recipe.yaml")
    assert said.code == 0, said
    for words in (
        "preference: 16 of 16 rows", "sequences of up to 256 tokens", "chosen is the longer answer in",
        "prompts are computed once a pair:", "rows that say the opposite of another: 0",
    ):  # fmt: skip
        assert words in said.out, words
    value = call("data", "check", world / "recipe.yaml", "--json").json
    assert value["kind"] == "pairs" and value["preferences"]["chosen_tokens"]["max"] > 0


def test_show_has_prompt_chosen_and_rejected(world, call):
    said = call("data", "show", world / "recipe.yaml", "-n", "1")
    assert said.code == 0, said
    order = [said.out.index(word) for word in ("prompt (", "chosen (", "rejected (", "green and red count")]
    assert order == sorted(order)
    record = call("data", "show", world / "recipe.yaml", "-n", "1", "--json").json["rows"][0]
    assert set(record["parts"]) == {"prompt", "chosen", "rejected"} and len(record["refs"]) == 2
    packed = call("data", "show", world / "recipe.yaml", "--packed", "-n", "1", "--json").json["rows"][0]
    assert len(packed["rows_of"]) == len(packed["rows"]) > 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (("objective.name=sft",), 3, "D218"),
        (("data.loss_on=all",), 2, "C110"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_exit_code(world, call, changes, code, words):
    said = call("data", "check", world / "recipe.yaml", *changes)
    assert said.code == code and words in said.err and "Traceback" not in said.err


def test_pairs_serve_kto_and_that_is_said(world, call):
    value = call("data", "check", world / "recipe.yaml", "objective.name=kto", "--json").json
    assert value["kind"] == "rated" and value["rows_used"] == 32
    assert "16 pairs read as two rated answers each" in str(value["sources"][0]["notes"])


def test_init_writes_a_recipe_with_the_objective_that_check_takes(world, call, tmp_path):
    rows = [{"prompt": f"day {i}", "chosen": f"night {i}", "rejected": f"week {i}"} for i in range(6)]
    file = write_rows(tmp_path / "texts.jsonl", rows)
    said = call("init", file, "--model", world / "base", "--out", tmp_path / "r.yaml")
    assert said.code == 0 and "without it they are raw text" in said.out.replace("\n", " ")
    text = (tmp_path / "r.yaml").read_text()
    assert "name: dpo" in text and "user: prompt" in text and "format: preference" in text
    value = call("data", "check", tmp_path / "r.yaml", f"output_dir={tmp_path / 'run'}", "--json").json
    assert value["kind"] == "pairs" and value["rows_used"] == 6
    assert json.dumps(value["samples"][0]["tokens"]).count("im_start") == 2, "rendered as a chat"
