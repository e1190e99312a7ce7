"""A working directory with one small data file, and a loader that takes text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import Problem, RecipeError

BASE = """\
model: {name_or_path: smollm2-135m-instruct}
data: {train: [{path: rows.jsonl}]}
output_dir: runs/x
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder with `rows.jsonl` and `more.jsonl`, made the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("more.jsonl").write_text('{"text": "b"}\n')
    return tmp_path


def load(text: str, *overrides: str, base: bool = True) -> Recipe:
    """Load a recipe of `text` below the required keys."""
    Path("recipe.yaml").write_text((BASE if base else "") + textwrap.dedent(text), encoding="utf-8")
    return load_recipe(Path("recipe.yaml"), overrides).recipe


def problems_of(text: str, *overrides: str, base: bool = True) -> list[Problem]:
    """The problems of a recipe that must not load."""
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides, base=base)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def problem_of(text: str, *overrides: str, base: bool = True) -> Problem:
    """The one problem of a recipe."""
    found = problems_of(text, *overrides, base=base)
    assert len(found) == 1, [problem.render() for problem in found]
    return found[0]
