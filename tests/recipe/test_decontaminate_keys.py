"""Contract: keys of `data.decontaminate` that contradict each other or have no effect are errors at their place."""

from __future__ import annotations

import pytest

from luthier.recipe.check import check
from luthier.recipe.positions import nowhere
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schema import Recipe
from tests.recipe.support import BASE, load, problem_of

pytestmark = pytest.mark.usefixtures("work")


def with_data(keys: str) -> str:
    return BASE.replace("rows.jsonl}]", f"rows.jsonl}}], {keys}")


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        ("decontaminate: {action: drop}", "C110", "nothing to compare with"),
        ("decontaminate: {against: [{path: nothere.jsonl}]}", "C130", "no such file"),
        ("decontaminate: {against: [{path: rows.jsonl}], action: off}", "C111", "looks for nothing"),
        ("decontaminate: {against: [{path: rows.jsonl}], variants: true}", "C111", "lists every row"),
        ("decontaminate: {against: [{path: rows.jsonl}], embedding_model: x}", "C111", "there is no `embedding`"),
        (
            "decontaminate: {against: [{path: rows.jsonl}], embedding: 0.7, embedding_model: models/x}",
            "C130",
            "no such",
        ),
        ("decontaminate: {against: [{path: rows.jsonl}], on: answer, reworded: 0.5}", "C111", "looks for no prompt"),
        ("decontaminate: {against: [{path: rows.jsonl}], on: prompt, answer: 0.5}", "C111", "looks for no answer"),
        ("decontaminate: {against: [{path: rows.jsonl, split: test}]}", "C111", "the path is a local one"),
        ("decontaminate: {against: [{path: rows.jsonl}], ngram: 0}", "C103", "> 0"),
        ("decontaminate: {against: [{path: rows.jsonl}], acton: drop}", "C102", "acton"),
    ],
)
def test_what_cannot_be(keys: str, code: str, words: str) -> None:
    problem = problem_of(with_data(keys), base=False)
    assert problem.code == code and words in problem.message, problem.render()
    assert problem.line == 2


@pytest.mark.parametrize(
    "keys",
    [
        "decontaminate: {against: [{path: rows.jsonl}], action: drop, variants: true}",
        "decontaminate: {action: off}",
        "decontaminate: {against: [{path: rows.jsonl}], on: answer}",
    ],
)
def test_a_resolved_recipe_loads_again(keys: str) -> None:
    recipe = load(with_data(keys), base=False)
    again = Recipe.model_validate(recipe_to_dict(recipe))
    assert again == recipe and check(again, locate=nowhere) == []
