"""`data map` on a recipe and after a run: splits, stored scores, and losses computed with the run's model."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from luthier.explore.losses import stored_scores
from luthier.explore.pack import read_column, read_page
from luthier.runtime.errors import RunFailed
from tests.cli.calling import caller, make_world, write_recipe
from tests.explore.support import planted_set


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("explored"))
    test = str(folder / "test.jsonl")
    tasks = [
        {"name": "words", "path": test, "metric": "exact", "max_new_tokens": 2},
        {"name": "held", "path": test, "metric": "loss"},
    ]
    write_recipe(folder / "recipe.yaml", folder, evaluate={"tasks": tasks}, data={"validation": {"fraction": 0.2}})
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


def test_rows_of_a_recipe_stand_in_their_splits(world, call):
    said = call("data", "map", world / "recipe.yaml", "--out", world / "map.html", "--json", "--no-languages")
    assert said.code == 0, said
    checked = call("data", "check", world / "recipe.yaml", "--json").json
    page = read_page((world / "map.html").read_text("utf-8"))
    split = next(cat for cat in page["head"]["cats"] if cat["key"] == "split")
    names = [split["values"][k] for k in read_column(split["data"])]
    assert names.count("train") == checked["rows_used"] and names.count("validation") == checked["validation_rows"]
    assert names.count("test") == 4, "both tasks read the same file: each row stands once"
    assert len(page["tokens"]) == len(names) and all(page["tokens"]), "the tokenizer of the recipe is known"
    lengths = read_column(next(num for num in page["head"]["nums"] if num["key"] == "length")["data"])
    train = [k for k, name in enumerate(names) if name == "train"]
    assert lengths[train].sum() == checked["tokens"] and said.json["rows"] == len(names)


def test_what_does_not_fit_is_told(world, call):
    for arguments, words in (
        (["--on", "all"], "--on must be one of conversation, prompt, answer; got all"),
        (["--losses", "5"], "--losses needs the model of a run"),
        (["--out", str(world / "rows.jsonl")], "--out must end in .html"),
        (["--embedder", str(world / "nothing")], "no embedding model in"),
    ):
        said = call("data", "map", world / "rows.jsonl", "--out", world / "no.html", *arguments)
        assert said.code in (2, 4) and words in said.err.replace("\n", " "), said
    assert not (world / "no.html").exists()


def test_a_page_that_is_there_is_replaced_with_force_alone(world, call):
    (world / "mine.html").write_text("mine")
    asked = ("data", "map", world / "recipe.yaml", "--out", world / "mine.html", "--no-languages")
    said = call(*asked)
    assert said.code == 2 and "C165" in said.err and "--force" in said.err
    assert (world / "mine.html").read_text() == "mine"
    assert call(*asked, "--force").code == 0 and "<html" in (world / "mine.html").read_text("utf-8")


def test_stored_scores_are_found_by_their_place(tmp_path):
    explored, _ = planted_set(12, 4)
    refs = [item.ref for item in explored.items]
    rows = [
        {"ref": refs[13], "score": 2.5},
        {"ref": refs[14], "score": 1.0},
        {"ref": "elsewhere.jsonl:1", "score": 9.0},
    ]
    value = {"model": "tuned", "tasks": [{"name": "t", "metric": "loss", "rows": rows}]}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "after.json").write_text(json.dumps(value), "utf-8")
    found = stored_scores(tmp_path, explored.items)
    assert list(found) == ["t: loss"]
    expected = np.full(16, np.nan)
    expected[13], expected[14] = 2.5, 1.0
    assert np.array_equal(found["t: loss"], expected, equal_nan=True)
    (tmp_path / "eval" / "after.json").write_text('{"tasks": [{}]}', "utf-8")
    with pytest.raises(RunFailed, match=r"after\.json is not a file of scores"):
        stored_scores(tmp_path, explored.items)


@pytest.mark.slow
def test_after_a_run_losses_by_cluster_are_those_of_its_evaluation(world, call):
    assert call("run", world / "recipe.yaml").code == 0
    said = call("data", "map", "--run", world / "run", "--losses", 50, "--out", world / "run.html", "--json",
                "--no-languages")  # fmt: skip
    assert said.code == 0, said
    page = read_page((world / "run.html").read_text("utf-8"))
    nums = {num["name"]: read_column(num["data"]) for num in page["head"]["nums"]}
    assert {"held: loss", "held: loss before", "words: exact", "held-out loss"} <= set(nums)
    scored = ~np.isnan(nums["held: loss"])
    assert scored.sum() == 4
    assert np.allclose(nums["held-out loss"][scored], nums["held: loss"][scored], rtol=1e-4)
    validation = json.loads((world / "run" / "data" / "manifest.json").read_text("utf-8"))["validation_rows"]
    assert (~np.isnan(nums["held-out loss"])).sum() == 4 + validation
    by_cluster = [cluster["scores"].get("held: loss", {"rows": 0, "mean": 0}) for cluster in said.json["clusters"]]
    total = sum(entry["rows"] * entry["mean"] for entry in by_cluster)
    assert total == pytest.approx(nums["held: loss"][scored].sum(), abs=1e-2)
    none = call("data", "map", world / "rows.jsonl", "--run", world / "run", "--losses", 5, "--out", world / "n.html")
    assert none.code == 2 and "name the recipe instead of files" in none.err
