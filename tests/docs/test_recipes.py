"""Contract: every recipe that ships loads and checks. Only data that is not shipped may be missing."""

import re
from pathlib import Path

import pytest

from luthier.recipe.load import load_recipe
from luthier.runtime.errors import RecipeError

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.yml")])
SPECS = [path for path in FILES if path.name.startswith("synth-")]
RECIPES = [path for path in FILES if path not in SPECS]
NOT_SHIPPED = ("data/", "../shared/")


def problems_of(path: Path):
    """Problems of a recipe, less those about files of data that do not come with the repository."""
    try:
        load_recipe(path)
    except RecipeError as error:
        return [item for item in error.problems if not (item.code == "C130" and _names_missing_data(item))]
    return []


def _names_missing_data(problem) -> bool:
    return any(f" {name}" in (problem.source or "") for name in NOT_SHIPPED)


def test_all_recipes_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in RECIPES}
    assert len(names) >= 11, names
    assert {"recipes/chat-lora.yaml", "recipes/qlora-24gb.yaml", "recipes/full-small-model.yaml"} <= names
    assert {"recipes/lora-plus.yaml", "recipes/pissa.yaml", "recipes/grpo-gsm8k-smollm2.yaml"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_loads_and_checks(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [problem.render() for problem in problems_of(path)] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_checks_whole_where_its_data_is_there(path, tmp_path, monkeypatch):
    """With every data file in place nothing at all is left to say."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text("utf-8").replace("../shared/", "shared/")
    for word in text.replace(",", " ").replace("}", " ").split():
        if word.startswith(("data/", "shared/")) and "." in word:
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).write_text("{}")
    copy = tmp_path / path.name
    copy.write_text(text)
    recipe = load_recipe(copy).recipe
    assert recipe.output_dir.startswith("runs/")
    assert recipe.name


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_synthesis_spec_loads_and_checks(path):
    from luthier.synthesis.load import load_spec

    spec = load_spec(path)
    assert getattr(spec, spec.mode) is not None and spec.out.startswith("data/")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_the_repository_that_comments_name_exist(path):
    named = re.findall(r"\b(?:docs|benchmarks|recipes|tests)/[\w./-]+\.\w+", path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_all_specs_are_found():
    assert {path.stem for path in SPECS} >= {"synth-documents", "synth-seeds", "synth-gsm8k-rejection"}


def test_a_broken_recipe_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    broken = tmp_path / "broken.yaml"
    broken.write_text(RECIPES[0].read_text("utf-8").replace("num_train_epochs", "num_epochs"))
    assert [problem.code for problem in problems_of(broken)] == ["C102"]
    broken.write_text(RECIPES[0].read_text("utf-8").replace("format: messages", "format: chat"))
    assert [problem.code for problem in problems_of(broken)] == ["C103"]
