"""Contract: an override means what the same line in the file would mean, and fails in the same words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.recipe.overrides import apply_overrides, override_value
from luthier.recipe.positions import Document
from tests.recipe.support import load, problem_of, problems_of
from tests.recipe.test_yaml import json_values

pytestmark = pytest.mark.usefixtures("work")


def test_scalars_lists_and_mappings():
    recipe = load(
        "train: {seed: 1}\n",
        "train.learning_rate=1e-4",
        "train.seed=012",
        "method.target_modules=[q_proj, v_proj]",
        "data.train.0.map={user: q}",
        "data.train.0.path=more.jsonl",
        "name=no",
        "model.revision=null",
        "train.shuffle=false",
        'data.train.0.system="1"',
    )
    assert (recipe.train.learning_rate, recipe.train.seed, recipe.train.shuffle) == (1e-4, 12, False)
    assert recipe.method.target_modules == ["q_proj", "v_proj"]
    assert recipe.data.train[0].map == {"user": "q"}
    assert recipe.data.train[0].path == "more.jsonl"
    assert (recipe.name, recipe.model.revision, recipe.data.train[0].system) == ("no", None, "1")


def test_keys_below_sections_that_the_file_does_not_have_or_leaves_empty():
    recipe = load(
        "train:\n", "train.seed=3", "data.validation.fraction=0.1", "data.train.0.map.user=q", "export.merge=false"
    )
    assert (recipe.train.seed, recipe.data.validation.fraction, recipe.export.merge) == (3, 0.1, False)
    assert recipe.data.train[0].map == {"user": "q"}


@pytest.mark.parametrize("text", ["Answer: yes # or no", "a, b", "*bold*", "a=b=c", "- x", "!x", "&x", "% y", "it's"])
def test_text_needs_no_quotes(text):
    assert load("", f"data.train.0.system={text}").data.train[0].system == text


def test_a_whole_section_can_be_set():
    assert load("train: {seed: 1}\n", "train={max_steps: 5}").train.model_fields_set == {"max_steps"}


def test_what_is_wrong_inside_a_set_section_stands_on_the_command_line():
    assert problem_of("train: {seed: 1}\n", "train={seed: x}").where() == "command line: train={seed: x}"


def test_leading_dashes_are_allowed():
    assert load("", "--train.seed=3").train.seed == 3


def test_an_override_of_one_alias_leaves_the_other_alone():
    text = """\
        evaluate:
          tasks:
            - {name: a, path: rows.jsonl, metric: exact, map: &m {user: q}}
            - {name: b, path: rows.jsonl, metric: exact, map: *m}
        """
    tasks = load(text, "evaluate.tasks.0.map.user=z").evaluate.tasks
    assert (tasks[0].map, tasks[1].map) == ({"user": "z"}, {"user": "q"})


@pytest.mark.parametrize(
    ("override", "code", "words", "hint"),
    [
        ("train.learning_rte=1e-3", "C102", 'unknown key "learning_rte" in train', 'did you mean "learning_rate"?'),
        ("trian.seed=1", "C102", 'unknown key "trian"', 'did you mean "train"?'),
        ("learning_rate=1", "C102", 'unknown key "learning_rate"', '"learning_rate" belongs in train'),
        ("train.seed=fast", "C103", '`train.seed` must be a whole number >= 0 (default 0); got the text "fast"', None),
        ("train.seed=", "C103", "got nothing (null)", None),
        ("train.learning_rate=.nan", "C103", "finite", None),
        ("train.report_to=[wandb", "C101", "not valid YAML", None),
        ("name=[!!python/object/apply:os.system [x]]", "C106", "tags", "write the plain value"),
        ("train.seed.x=1", "C107", "`train.seed` has no keys below it", "write train.seed=value"),
        ("data.train.1.path=x", "C107", "its entries are 0 to 0, got 1", "set all of it: data.train=[...]"),
        (
            "data.train.path=x",
            "C107",
            "`data.train` is a list; its entries are 0 to 0, got path",
            "set all of it: data.train=[...]",
        ),
        ("data.train.0.path=gone.jsonl", "C130", "no such file", "did you mean more.jsonl or rows.jsonl?"),
        ("train.seed", "C107", "is not an override", "write key.sub=value, for instance train.learning_rate=1e-4"),
        (
            "~train.learning_rate",
            "C107",
            "the recipe does not set `train.learning_rate`",
            "take out what the recipe sets; what it does not set has its default anyway",
        ),
        (
            "~data.train.1.path",
            "C107",
            "the recipe does not set `data.train.1.path`",
            "take out what the recipe sets; what it does not set has its default anyway",
        ),
        ("=3", "C107", "is not a key", "write key.sub=value, for instance train.learning_rate=1e-4"),
        ("train..seed=3", "C107", "is not a key", "write key.sub=value, for instance train.learning_rate=1e-4"),
    ],
)
def test_wrong_overrides_name_the_command_line(override, code, words, hint):
    problem = problem_of("train: {seed: 1}\n", override)
    assert (problem.code, problem.hint) == (code, hint)
    assert problem.where() == f"command line: {override}"
    assert words in problem.message


def test_a_key_that_is_taken_out_has_its_default():
    text = "train: {num_train_epochs: 3, seed: 7}\n"
    assert problem_of(text, "train.max_steps=5").code == "C111"
    train = load(text, "~train.num_train_epochs", "train.max_steps=5").train
    assert (train.num_train_epochs, train.max_steps, train.seed) == (1.0, 5, 7)
    assert load(text, "~train").train.seed == 0


def test_a_key_given_twice_is_refused():
    assert problem_of("", "train.seed=1", "train.seed=2").code == "C105"


def test_problems_of_the_file_come_first_then_those_of_the_command_line_in_their_order():
    found = problems_of("nme: x\n", "zzz=1", "train.seed=x", "aaaa=2")
    assert [problem.where() for problem in found] == [
        "recipe.yaml:4:1", "command line: zzz=1", "command line: train.seed=x", "command line: aaaa=2",
    ]  # fmt: skip


def test_an_override_mends_a_wrong_value_of_the_file():
    assert load("train: {seed: x}\n", "train.seed=4").train.seed == 4


@given(value=json_values)
def test_every_json_value_survives_the_command_line(value):
    text = json.dumps(value)
    assert override_value(text, origin="x") == (value, [])


@given(
    value=st.dictionaries(st.text("abc", min_size=1, max_size=2), json_values, max_size=4),
    key=st.text("abc", min_size=1, max_size=2), inner=st.text("abcd", min_size=1, max_size=2), new=json_values,
)  # fmt: skip
def test_an_override_changes_its_key_and_nothing_else(value, key, inner, new):
    wanted = {**value, key: {**(value[key] if isinstance(value.get(key), dict) else {}), inner: new}}
    document = Document(origin="x", text="", value=json.loads(json.dumps(value)))
    apply_overrides(document, [f"{key}.{inner}={json.dumps(new)}"])
    if value.get(key) is None or isinstance(value[key], dict):
        assert document.problems == []
        assert document.value == wanted
    else:
        assert [problem.code for problem in document.problems] == ["C107"]
        assert document.value == value
