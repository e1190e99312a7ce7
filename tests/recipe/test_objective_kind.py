"""Contract: every objective of the schema knows its rows, and packs hold every row that is kept."""

from typing import get_args

import pytest

from luthier.recipe.objective_kind import OBJECTIVES, objectives_text, pack_capacity, row_kind
from luthier.recipe.schema import ObjectiveSection


def test_every_objective_has_a_kind_and_every_kind_an_objective_of_the_schema():
    names = get_args(ObjectiveSection.model_fields["name"].annotation)
    assert {row_kind(name) for name in names} == set(OBJECTIVES)
    assert sorted(name for group in OBJECTIVES.values() for name in group) == sorted(names)
    assert (row_kind("sft"), row_kind("dpo"), row_kind("reward"), row_kind("kto")) == (
        "tokens",
        "pairs",
        "pairs",
        "rated",
    )


def test_an_unknown_objective_is_an_error():
    with pytest.raises(ValueError, match="unknown objective 'ppo'"):
        row_kind("ppo")


def test_names_in_a_sentence():
    assert objectives_text("tokens") == "sft"
    assert objectives_text("pairs").startswith("dpo, ") and " or " in objectives_text("pairs")


@pytest.mark.parametrize("max_length", [1, 7, 1024])
def test_a_pack_holds_the_longest_row_that_is_kept(max_length):
    longest = {"tokens": max_length, "rated": max_length, "pairs": 1 + 2 * (max_length - 1)}
    for kind, tokens in longest.items():
        assert pack_capacity(kind, max_length) >= tokens
