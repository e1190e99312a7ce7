"""Contract: one value is set in the text of a recipe, and nothing else in it changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.recipe.edit import set_value
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import RecipeError

KEY = "train.learning_rate"


def edit(text, value=3e-4):
    return set_value(text, KEY, value, origin="recipe.yaml")


CASES = {
    "in place, comment kept": (
        "model: {a: b}\ntrain:\n  learning_rate: auto   # from lr-find\n  seed: 0\n",
        "model: {a: b}\ntrain:\n  learning_rate: 0.0003   # from lr-find\n  seed: 0\n",
    ),
    "quoted": ('train:\n  learning_rate: "auto" # x\n', "train:\n  learning_rate: 0.0003 # x\n"),
    "in a flow mapping": ("train: {learning_rate: 1e-4, seed: 0}\n", "train: {learning_rate: 0.0003, seed: 0}\n"),
    "empty value": (
        "train:\n  learning_rate:   # later\n  seed: 0\n",
        "train:\n  learning_rate: 0.0003   # later\n  seed: 0\n",
    ),
    "key missing, block": (
        "train:  # the loop\n    # comment\n    seed: 0\noutput_dir: x\n",
        "train:  # the loop\n    learning_rate: 0.0003\n    # comment\n    seed: 0\noutput_dir: x\n",
    ),
    "key missing, flow": ("train: {seed: 0}\n", "train: {learning_rate: 0.0003, seed: 0}\n"),
    "key missing, empty flow": ("train: {}\nx: 1\n", "train: {learning_rate: 0.0003}\nx: 1\n"),
    "section empty": ("train:\noutput_dir: x\n", "train:\n  learning_rate: 0.0003\noutput_dir: x\n"),
    "section empty, all of it commented out": (
        "train:\n  # seed: 0\noutput_dir: x\n", "train:\n  learning_rate: 0.0003\n  # seed: 0\noutput_dir: x\n",
    ),
    "section missing": ("output_dir: x\n", "output_dir: x\ntrain:\n  learning_rate: 0.0003\n"),
    "section missing, no line end": ("output_dir: x", "output_dir: x\ntrain:\n  learning_rate: 0.0003\n"),
    "section at the end, no line end": ("a: 1\ntrain:", "a: 1\ntrain:\n  learning_rate: 0.0003\n"),
    "windows line ends": (
        "train:\r\n  seed: 0\r\noutput_dir: x\r\n",
        "train:\r\n  learning_rate: 0.0003\r\n  seed: 0\r\noutput_dir: x\r\n",
    ),
    "other keys of that name": (
        "learning_rate: 1\nother: {learning_rate: 2}\ntrain: {learning_rate: 3}\n",
        "learning_rate: 1\nother: {learning_rate: 2}\ntrain: {learning_rate: 0.0003}\n",
    ),
    "json over lines": (
        '{\n "train": {\n  "seed": 0\n },\n "a": 1\n}',
        '{\n "train": {learning_rate: 0.0003, \n  "seed": 0\n },\n "a": 1\n}',
    ),
    "json": ('{"a": 1, "train": {"seed": 0}}', '{"a": 1, "train": {learning_rate: 0.0003, "seed": 0}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    before, after = CASES[name]
    assert edit(before) == after


def test_small_and_large_rates_stay_numbers_for_every_yaml():
    assert "learning_rate: 3.0e-06\n" in edit("train:\n  learning_rate: auto\n", 3e-6)


@pytest.mark.parametrize(
    "text",
    [
        "x: &t {learning_rate: 1}\ntrain: *t\n",  # one mapping under two names
        '{"a": 1}',  # no place for a section
        "train: 5\n",
    ],
)
def test_what_cannot_be_set_safely_is_refused_with_the_place(text):
    with pytest.raises(RecipeError, match="C161"):
        edit(text)


def test_text_that_is_no_recipe_is_refused():
    with pytest.raises(RecipeError):
        edit("a: [")
    with pytest.raises(RecipeError, match="C101"):
        edit("- 1\n")


WORD = st.from_regex(r"[a-z]{1,6}", fullmatch=True)


@given(
    st.dictionaries(WORD, st.one_of(st.integers(-(2**62), 2**62), WORD, st.none()), max_size=3),
    st.sampled_from(["  ", "    "]),
    st.sampled_from(["# note: x", ""]),
    st.booleans(),
)
def test_whatever_stands_there_only_one_value_changes(keys, indent, comment, has):
    lines = [f"model: q {comment}".rstrip(), f"train: {comment}".rstrip()]
    inside = [f"{indent}{key}: {'null' if value is None else value} {comment}".rstrip() for key, value in keys.items()]
    inside += [f"{indent}learning_rate: 1e-4 {comment}".rstrip()] if has else []
    text = "\n".join([*lines, *inside, "output_dir: r", ""])
    if len({line.split(":")[0] for line in inside}) < len(inside):
        return
    after = edit(text)
    old, new = parse_yaml(text, origin="a").value, parse_yaml(after, origin="b").value
    assert new == {**old, "train": {**(old["train"] or {}), "learning_rate": 3e-4}}
    assert after.count("# note: x") == text.count("# note: x")
