"""Contract: keys of `data.dedup` that contradict each other or have no effect are errors at their place."""

from __future__ import annotations

import pytest

from luthier.recipe.check import check
from luthier.recipe.positions import nowhere
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schema import Recipe
from tests.recipe.support import BASE, load, problem_of, problems_of

pytestmark = pytest.mark.usefixtures("work")


def with_data(keys: str) -> str:
    return BASE.replace("rows.jsonl}]", f"rows.jsonl}}], {keys}")


def test_an_empty_section_is_exact_and_fuzzy() -> None:
    assert load(BASE, base=False).data.dedup is None
    dedup = load(with_data("dedup: {}"), base=False).data.dedup
    assert dedup is not None
    assert (dedup.exact, dedup.fuzzy, dedup.semantic, dedup.on, dedup.keep, dedup.numbers) == (
        True, 0.8, None, "conversation", "first", "same",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        ("dedup: {exact: false, fuzzy: null}", "C110", "nothing would be found"),
        ("dedup: {keep: score}", "C110", "keep: score needs `score`"),
        ("dedup: {score: quality}", "C111", "keep: first asks for no column"),
        ("dedup: {fuzzy: null, numbers: any}", "C111", "neither `fuzzy` nor `semantic` runs"),
        ("dedup: {embedding_model: models/x}", "C111", "there is no `semantic`"),
        ("dedup: {semantic: 0.9, embedding_model: models/x}", "C130", "no such file"),
        ("dedup: {ignore: [case, case]}", "C110", "names something twice"),
        ("dedup: {fuzzy: 0}", "C103", "> 0"),
        ("dedup: {fuzzy: 80}", "C103", "<= 1"),
        ("dedup: {fuzy: 0.8}", "C102", "fuzy"),
        ("dedup: true", "C103", "a mapping"),
        ("validation: {near_duplicates: 0.8}", "C111", "neither a path nor a fraction"),
    ],
)
def test_what_cannot_be(keys: str, code: str, words: str) -> None:
    problem = problem_of(with_data(keys), base=False)
    assert problem.code == code and words in problem.message, problem.render()
    assert problem.line == 2


def test_all_at_once_and_beside_problems_elsewhere() -> None:
    text = with_data("dedup: {exact: false, fuzzy: null, keep: score}") + "train: {seed: -1}\n"
    assert sorted(problem.code for problem in problems_of(text, base=False)) == ["C103", "C110", "C110"]


@pytest.mark.parametrize("keys", ["dedup: {}", "dedup: {fuzzy: null}", "dedup: {keep: score, score: q}"])
def test_a_resolved_recipe_loads_again(keys: str) -> None:
    recipe = load(with_data(keys), base=False)
    again = Recipe.model_validate(recipe_to_dict(recipe))
    assert again == recipe and check(again, locate=nowhere) == []
