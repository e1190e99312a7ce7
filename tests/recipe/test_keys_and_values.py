"""Contract: every wrong key and value is reported once, at its place, with the nearest right one."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.recipe.emit import dump_yaml, scalar
from luthier.recipe.load import load_recipe, recipe_from_dict
from luthier.recipe.nearest import OTHER_NAMES, edit_distance, near, sections, suggest
from luthier.runtime.errors import RecipeError
from tests.recipe.support import BASE, load, problem_of, problems_of
from tests.support.often import often

pytestmark = pytest.mark.usefixtures("work")

KEYS = [(section, key) for section, keys in sections().items() for key in keys]


def recipe_with(section: str, key: str) -> dict:
    """A recipe whose only flaw is `key` in `section`."""
    recipe = {
        "model": {"name_or_path": "smollm2-135m-instruct"},
        "data": {"train": [{"path": "rows.jsonl"}], "validation": {}},
        "evaluate": {"tasks": [{"name": "t", "path": "rows.jsonl"}]},
        "output_dir": "x",
    }
    if section.startswith("objective.grpo"):
        recipe["objective"] = {"name": "grpo", "grpo": {"rewards": [{"name": "number"}]}}
    if section.startswith("data.decontaminate"):
        recipe["data"]["decontaminate"] = {"against": [{"path": "rows.jsonl"}]}
    place = recipe
    for part in section.split(".") if section else []:
        place = place[0] if part == "*" else place.setdefault(part, {})
    place[key] = 1
    return recipe


def test_every_section_and_list_entry_is_known():
    assert {"", "model", "data", "data.train.*", "data.validation", "evaluate.tasks.*"} <= set(sections())
    assert len(KEYS) > 80


def one_off(key: str) -> set[str]:
    """`key` with one character left out, or two neighbours swapped."""
    left_out = {key[:index] + key[index + 1 :] for index in range(len(key))}
    swapped = {key[:index] + key[index + 1] + key[index] + key[index + 2 :] for index in range(len(key) - 1)}
    return left_out | swapped


def is_typo(typo: str, section: str) -> bool:
    return bool(typo) and typo not in sections()[section] and typo not in OTHER_NAMES


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{section or 'top'}:{key}" for section, key in KEYS])
def test_a_left_out_or_swapped_character_of_any_key_suggests_that_key(section, key):
    for typo in one_off(key):
        if is_typo(typo, section):
            assert f'"{key}"' in suggest(typo, section), (typo, suggest(typo, section))


@settings(max_examples=often(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(KEYS),
    letter=st.sampled_from(string.ascii_letters + "_1"),
    spot=st.integers(0, 40),
    insert=st.booleans(),
)
def test_a_wrong_or_additional_character_in_any_key_is_reported_at_its_place(place, letter, spot, insert):
    section, key = place
    at = spot % len(key)
    typo = key[:at] + letter + key[at + (not insert) :]
    if not is_typo(typo, section):
        return
    text, shown = dump_yaml(recipe_with(section, typo)), scalar(typo)
    Path("recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"))
    found = [problem for problem in caught.value.problems if problem.code == "C102"]
    assert len(found) == 1, caught.value.render()
    line = next(number for number, line in enumerate(text.splitlines(), 1) if line.strip(" -").startswith(f"{shown}:"))
    column = text.splitlines()[line - 1].index(f"{shown}:") + 1
    assert (found[0].line, found[0].column, found[0].length) == (line, column, len(shown))
    assert f'"{key}"' in found[0].hint


def test_a_misspelt_required_key_is_one_problem_not_two():
    problem = problem_of(BASE.replace("name_or_path", "name_or_pth"), base=False)
    assert (problem.line, problem.column, problem.hint) == (1, 9, 'did you mean "name_or_path"?')


def test_a_key_of_another_section_is_sent_there():
    problem = problem_of("learning_rate: 1e-4\n")
    assert (problem.line, problem.column) == (4, 1)
    assert problem.hint == '"learning_rate" belongs in train'
    assert problem_of("train: {max_length: 5}\n").hint == '"max_length" belongs in data'
    assert problem_of("train: {merge: true}\n").hint == '"merge" belongs in export'
    assert problem_of("learning_rte: 1e-4\n").hint == 'did you mean "learning_rate" in train?'


@pytest.mark.parametrize(
    ("section", "key", "ours"),
    [
        ("train", "lr", "learning_rate"),
        ("", "lr", "learning_rate"),
        ("method", "lr", "learning_rate"),
        ("train", "num_epochs", "num_train_epochs"),
        ("", "micro_batch_size", "per_device_train_batch_size"),
        ("train", "per_device_batch_size", "per_device_train_batch_size"),
        ("", "sequence_len", "max_length"),
        ("", "cutoff_len", "max_length"),
        ("method", "lora_rank", "r"),
        ("", "lora_r", "r"),
        ("", "base_model", "name_or_path"),
        ("method", "lora_target_modules", "target_modules"),
        ("", "model_name_or_path", "name_or_path"),
        ("", "datasets", "train"),
        ("", "val_set_size", "fraction"),
        ("data", "train_on_inputs", "loss_on"),
        ("", "lora_target_linear", "target_modules"),
        ("model", "torch_dtype", "dtype"),
        ("", "optimizer", "optim"),
    ],
)
def test_names_of_other_tools_lead_to_ours(section, key, ours):
    assert f'"{ours}"' in suggest(key, section)


def test_every_name_of_another_tool_leads_to_a_key_that_exists_and_is_none_of_ours():
    ours = {f"{section}.{key}".lstrip(".") for section, key in KEYS}
    assert set(OTHER_NAMES.values()) <= ours
    for other, target in OTHER_NAMES.items():
        assert other not in sections()[target.rpartition(".")[0]]


def test_the_hint_of_a_key_like_nothing_lists_what_is_allowed():
    assert (
        problem_of("export: {zzzz: 1}\n").hint == "allowed here: merge, max_shard_size, checkpoints, gguf, push_to_hub"
    )


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "acb", 1),
        ("abc", "ab", 1),
        ("abc", "xbcd", 2),
        ("abcd", "wxyz", 3),
        ("a", "abcdef", 3),
    ],
)
def test_edit_distance_by_hand(left, right, distance):
    assert edit_distance(left, right, limit=2) == distance


def test_keys_that_are_equally_near_are_all_named():
    assert near("adam_beta3", ["adam_beta1", "adam_beta2", "seed"]) == ["adam_beta1", "adam_beta2"]


@pytest.mark.parametrize(
    ("text", "column", "words", "hint"),
    [
        ("train: {learning_rate: fast}", 24, 'a number > 0 or "auto" (default "auto"); got the text "fast"', None),
        ("train: {learning_rate: 0}", 24, "got 0", None),
        ("train: {learning_rate: true}", 24, "got the truth value true", None),
        ("train: {max_steps: 1e3}", 20, "a whole number >= 1 or null (default null); got 1000.0", "write 1000"),
        ("train: {max_steps: '7'}", 20, 'got the text "7"', "write the number without quotes, commas or underscores"),
        ("train: {seed: 1_000}", 15, 'got the text "1_000"', "write the number without quotes, commas or underscores"),
        (
            "train: {shuffle: no}",
            18,
            'true or false (default true); got the text "no"',
            "in YAML 1.2 `no` is text: write `false`",
        ),
        ("train: {lr_scheduler_type: cosin}", 28, 'one of "cosine", "linear"', 'did you mean "cosine"?'),
        ("train: {optim: }", 9, "got nothing (null)", None),
        ("train: {report_to: wandb}", 20, 'a list of "tensorboard" | "wandb"', "write it as a list: [wandb]"),
        ("train: {report_to: [wandb, wandbb]}", 28, "one of", 'did you mean "wandb"?'),
        ("train: {warmup_ratio: 1.0}", 23, "a number >= 0 and < 1 (default 0.03); got 1.0", None),
        ("method: lora", 9, "must be a mapping", "write {name: lora}"),
        ("train: fast", 8, "must be a mapping", None),
        ("evaluate: {tasks: [gsm8k]}", 20, "must be a mapping", "write {name: gsm8k}"),
        ("evaluate: {tasks: gsm8k}", 19, "must be a list of mappings", "write [{name: gsm8k}]"),
        ("train: 3", 8, "must be a mapping; got 3", None),
        ("name: 12", 7, "text or null (default null); got 12", 'quote it: "12"'),
        ("name: 1e5", 7, "got 100000.0", 'quote it: "1e5"'),
        ("method: {target_modules: 3}", 26, "text or a list of texts", 'quote it: "3"'),
        ("method: {target_modules: [a, 3]}", 30, "`method.target_modules.1` must be text; got 3", 'quote it: "3"'),
        ("version: 2", 10, "must be 1 (default 1); got 2", None),
        ("evaluate: {tasks: [{name: a/b, path: rows.jsonl}]}", 27, "text that matches", None),
    ],
)
def test_a_wrong_value_is_one_problem_that_says_what_is_allowed(text, column, words, hint):
    problem = problem_of(text + "\n")
    assert problem.code == "C103"
    assert (problem.line, problem.column) == (4, column)
    assert words in problem.message
    assert problem.hint == hint


def test_whole_numbers_are_good_where_a_number_is_wanted():
    recipe = load("method: {lora_alpha: 32}\ntrain: {num_train_epochs: 3, learning_rate: 1}\n")
    assert (recipe.method.lora_alpha, recipe.train.num_train_epochs) == (32.0, 3.0)


def test_all_problems_come_at_once_in_file_order_with_those_of_the_rules():
    found = problems_of(
        """\
        model: {name_or_path: ./nowhere, dtyp: auto}
        method: {name: full, r: 8}
        data:
          train:
            - {path: row.jsonl}
            - {path: rows.jsonl, formt: auto}
          max_length: -1
          validation: {path: gone.jsonl, fraction: 0.1}
        train:
          learning_rte: 1
          learning_rate: fast
        evaluate: {tasks: [{name: a, path: rows.jsonl, metric: exact}, {name: a, path: rows.jsonl, metric: loss}]}
        """,
        base=False,
    )
    assert [(problem.line, problem.column, problem.code) for problem in found] == [
        (None, None, "C104"), (1, 34, "C102"), (2, 22, "C111"), (5, 14, "C130"), (6, 26, "C102"), (7, 15, "C103"),
        (8, 22, "C130"), (8, 34, "C110"), (10, 3, "C102"), (11, 18, "C103"), (12, 71, "C110"),
    ]  # fmt: skip


def test_a_missing_key_is_reported_at_its_section():
    problem = problem_of("model: {}\ndata: {train: [{path: rows.jsonl}]}\noutput_dir: x\n", base=False)
    assert (problem.code, problem.line, problem.column) == ("C104", 1, 1)
    assert '"name_or_path" in model' in problem.message
    problem = problem_of(BASE.replace("{path: rows.jsonl}", "{format: text}"), base=False)
    assert '"path" in data.train.0' in problem.message
    assert problem.line == 2


def test_a_section_with_all_its_lines_commented_out_is_an_empty_section():
    assert load("train:\n  # seed: 1\nevaluate:\n").train == load("").train
    assert problem_of("data:\nmodel: {name_or_path: smollm2-135m-instruct}\noutput_dir: x\n", base=False).code == "C104"


def test_rendered_problems_look_as_documented():
    problem = problem_of("train:\n  learning_rte: 1e-3\n")
    assert problem.render() == (
        'error[C102] recipe.yaml:5:3  unknown key "learning_rte" in train\n'
        "    5 |   learning_rte: 1e-3\n"
        '          ^^^^^^^^^^^^ did you mean "learning_rate"?'
    )


def test_a_mapping_is_checked_like_a_file_and_paths_and_tuples_are_welcome(work):
    value = {
        "model": {"name_or_path": "smollm2-135m-instruct"},
        "data": {"train": ({"path": work / "rows.jsonl"},)},
        "output_dir": work / "out",
    }
    recipe = recipe_from_dict(value, origin="api")
    assert recipe.data.train[0].path == str(work / "rows.jsonl")
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(
            {
                **value,
                "nme": 1,
                "train": {"seed": float("nan"), "learning_rate": float("inf")},
                "output_dir": {1},
                "model": {"name_or_path": "smollm2-135m-instruct", 3: 1},
            },
            origin="api",
        )
    assert all(problem.file == "api" and problem.line is None for problem in caught.value.problems)
    assert len(caught.value.problems) == 5


def test_a_path_or_a_model_name_in_place_of_its_section_shows_how_to_write_it():
    found = problems_of("model: org/name\ndata: {train: rows.jsonl}\noutput_dir: x\n", base=False)
    assert [problem.hint for problem in found] == ["write {name_or_path: org/name}", "write [{path: rows.jsonl}]"]
    assert problem_of(BASE.replace("{path: rows.jsonl}", "rows.jsonl"), base=False).hint == "write {path: rows.jsonl}"
