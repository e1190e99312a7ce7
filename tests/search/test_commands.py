"""Contract: `luthier lr-find` and `luthier sweep` from the command line; results on stdout."""

import json
import re

import pytest

from tests.cli.calling import caller
from tests.search.world import write_recipe


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


QUICK = ("--steps", 3, "--range-steps", 20)


def test_lr_find_shows_curve_table_verdict_and_what_to_do(call, world, tmp_path):
    said = call("lr-find", write_recipe(tmp_path / "recipe.yaml", world), *QUICK)
    assert said.code == 0, said.err
    assert "•" in said.out and "learning rate" in said.out and "held-out loss" in said.out
    assert "has the lowest held-out loss" in said.out and "the rule of `auto` gives 0.0003" in said.out
    assert re.search(r"to take it: `learning_rate: \S+` under `train:`", said.err)
    assert "about" in said.err and "minutes for the first 3" in said.err, "how long it takes"


def test_lr_find_writes_the_rate_into_the_recipe_and_keeps_the_rest(call, world, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", world)
    text = path.read_text().replace('"tokens_per_step"', '"learning_rate": "auto", # see docs\n  "tokens_per_step"')
    path.write_text(text)
    path.chmod(0o640)
    said = call("lr-find", path, *QUICK, "--write", "--json", "train.weight_decay=0.01")
    assert said.code == 0, said.err
    rate = said.json["choice"]["learning_rate"]
    assert said.json["written"] is True and rate == pytest.approx(float(said.json["line"].partition(": ")[2]))
    written = re.sub(r'"learning_rate": [^,]+,', '"learning_rate": "auto",', path.read_text())
    assert written == text and f'"learning_rate": {rate}' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert "train.weight_decay=0.01, which the recipe file does not say" in said.err


def test_lr_find_writes_no_edge(call, world, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.search.lr_find._centre", lambda curve, rule: 1e-6)
    path = write_recipe(tmp_path / "recipe.yaml", world)
    before = path.read_text()
    said = call("lr-find", path, *QUICK, "--extra-runs", 0, "--write", "--json")
    assert said.code == 1 and path.read_text() == before
    assert said.json["written"] is False and said.json["line"] is None and said.json["choice"]["edge"] == "highest"


def test_lr_find_finds_out_beforehand_that_it_cannot_write(call, world, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", world)
    flow = json.loads(path.read_text())
    flow.pop("train")
    path.write_text(json.dumps(flow))
    said = call("lr-find", path, *QUICK, "--write")
    assert said.code == 2 and "C161" in said.err and not (tmp_path / "run-lr-find").exists()


@pytest.mark.parametrize(
    "arguments", [("--steps", 1), ("--max-minutes", -1), ("train.learning_rat=1",), ("--frobnicate",)]
)
def test_lr_find_refuses_wrong_use(call, world, tmp_path, arguments):
    said = call("lr-find", write_recipe(tmp_path / "recipe.yaml", world), *arguments)
    assert said.code == 2 and not (tmp_path / "run-lr-find").exists()


def test_sweep_shows_a_table_with_the_keys_that_differ(call, world, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", world, train={"max_steps": 3})
    said = call("sweep", path, "train.learning_rate=1e-4,1e-2", "--train.seed", 1)
    assert said.code == 0, said.err
    assert "train.learning_rate" in said.out and "train.seed" not in said.out
    assert "best of 2 by eval_loss" in said.out and "run-sweep/index.html" in said.out.replace("\n", "")
    again = call("sweep", path, "train.learning_rate=1e-4,1e-2", "train.seed=1", "--json")
    assert again.json["ok"] and all(item["reused"] for item in again.json["trials"])
    assert again.json["best"]["settings"] == {"train.learning_rate": 0.01}


def test_sweep_takes_a_file_and_a_method(call, world, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", world, train={"max_steps": 2})
    (tmp_path / "space.yaml").write_text("train.learning_rate: log:1e-4..1e-2\n")
    said = call("sweep", path, "--space", tmp_path / "space.yaml", "--method", "random", "--trials", 2, "--json")
    assert said.code == 0 and len(said.json["trials"]) == 2 and said.json["method"] == "random"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("train.learning_rate=1e-4",), "C162"), (("train.learning_rate=log:1e-4..1e-2",), "C163"),
        (("train.learning_rat=1e-4,1e-3",), "C102"), (("train.seed=1,2", "--metric", "task:x"), "C164"),
        (("train.seed=1,2", "--trials", "3"), "C163"), (("train.seed=1,2", "--max-minutes", "0"), "C163"),
        (("seed",), "C120"),
    ],
)  # fmt: skip
def test_sweep_refuses_wrong_use(call, world, tmp_path, arguments, code):
    said = call("sweep", write_recipe(tmp_path / "recipe.yaml", world), *arguments, "--json")
    assert said.code == 2 and code in [item["code"] for item in said.json["problems"]]
    assert not (tmp_path / "run-sweep").exists()


def test_the_python_api_is_the_same_story(world, tmp_path):
    import luthier

    path = write_recipe(tmp_path / "recipe.yaml", world)
    found = luthier.lr_find(path, steps=2, max_minutes=1e-6)
    assert len(found.outcomes) == 1 and found.left_out
    result = luthier.sweep(path, ["train.learning_rate=1e-4,1e-3"], out=tmp_path / "out")
    assert len(result.trials) == 2 and result.folder == tmp_path / "out"
