"""Contract: YAML 1.2 values or an error with its line, quickly, and nothing runs (B62, F12, F16, acceptance 24)."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.recipe.emit import dump_yaml
from luthier.recipe.load import load_recipe
from luthier.recipe.yaml12 import parse_yaml, plain_scalar
from luthier.runtime.errors import RecipeError
from tests.recipe.support import BASE, load, problem_of, problems_of
from tests.support.often import often

pytestmark = pytest.mark.usefixtures("work")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        ("012", 12),
        ("0o14", 12),
        ("0x1F", 31),
        ("-7", -7),
        (".5", 0.5),
        ("5.", 5.0),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("Y", "Y"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("NULL", None),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("e1", "e1"),
        (".", "."),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    got = plain_scalar(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize("text", [".nan", "-.inf", ".Inf", "1e999", "9" * 30, "9223372036854775808", "0x" + "f" * 17])
def test_numbers_that_are_not_finite_or_do_not_fit_are_refused_with_their_place(text):
    problem = problem_of(f"train: {{seed: 1, learning_rate: {text}}}\n")
    assert (problem.code, problem.line, problem.column) == ("C103", 4, 33)
    assert problem.length == len(text)


def test_the_spellings_of_b62_give_the_intended_values_in_a_recipe():
    recipe = load("""\
        train: {learning_rate: 1e-4, max_steps: 012}
        name: no
        """)
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.max_steps == 12
    assert recipe.name == "no"


def test_a_repeated_key_names_both_lines():
    problem = problem_of("train:\n  seed: 1\n  shuffle: true\n  seed: 2\n")
    assert (problem.code, problem.line, problem.column, problem.length) == ("C105", 7, 3, 4)
    assert "first is on line 5" in problem.message


def test_repeated_keys_do_not_hide_other_problems():
    found = problems_of("train:\n  seed: 1\n  seed: 2\n  sead: 3\n")
    assert [(problem.code, problem.line) for problem in found] == [("C105", 6), ("C102", 7)]


def test_a_tab_is_an_error_with_its_line_and_a_hint():
    problem = problem_of("train:\n\tseed: 1\n")
    assert (problem.code, problem.line, problem.column) == ("C101", 5, 1)
    assert "never with tabs" in problem.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {seed: 1\nname: x\n", 5),
        ("train: [\n", 5),
        ("name: 'x\n", 5),
        ("name: @x\n", 4),
        ("a: b: c\n", 4),
        ("%TAG\n", 4),
    ],
)
def test_broken_yaml_is_an_error_with_its_line(text, line):
    problem = problem_of(text)
    assert problem.code == "C101"
    assert problem.line == line


def test_line_and_column_count_characters_with_crlf_and_odd_line_separators():
    text = '# \u2028 \x85\r\nmodel: {name_or_path: smollm2-135m-instruct}\r\nname: "\U0001f600"\r\n'
    text += "data: {train: [{path: rows.jsonl}]}\r\noutput_dir: x\r\nobjective: {name: sft, nme: \U0001f600}\r\n"
    Path("recipe.yaml").write_bytes(text.encode("utf-8"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"))
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (6, 24)
    assert problem.source.startswith("objective")


def test_a_byte_order_mark_changes_nothing():
    Path("recipe.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_recipe(Path("recipe.yaml")).recipe.output_dir == "runs/x"
    Path("recipe.yaml").write_bytes(b"\xef\xbb\xbfnme: 1\n" + BASE.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"))
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (1, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"# only\n", "empty"),
        (b"---\n", "empty"),
        (b"[1, 2]\n", "got a list"),
        (b"abc\n", 'got the text "abc"'),
        (b"3\n", "got 3"),
        ("name: \u00e4".encode("latin-1"), "0xe4"),
        ("name: x".encode("utf-16"), "UTF-16"),
        (b"name: \x00\n", "U+0000"),
        (b"a: 1\n---\nb: 2\n", "second one"),
        (b"%YAML 1.1\n---\na: 1\n", "YAML 1.2, not 1.1"),
        (b"? [a]\n: 1\n", "a key must be text"),
        (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_recipe_are_refused_with_the_reason(data, words):
    Path("recipe.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=re.escape(words)):
        load_recipe(Path("recipe.yaml"))


def test_invalid_utf8_has_line_and_column():
    Path("recipe.yaml").write_bytes(b"model: x\nname: ab\xff\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"))
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 9)


def test_missing_files_and_folders_are_named_with_what_lies_near():
    Path("recipes").mkdir()
    Path("recipes/tickets.yaml").write_text(BASE)
    with pytest.raises(RecipeError, match=r"no such file: .*recipes/ticket\.yaml(.|\n)*did you mean tickets\.yaml"):
        load_recipe(Path("recipes/ticket.yaml"))
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(Path("recipes"))
    with pytest.raises(RecipeError, match="not a file name"):
        load_recipe(Path("a\0b"))
    with pytest.raises(RecipeError, match="Not a directory"):
        load_recipe(Path("recipes/tickets.yaml/x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused():
    Path("recipe.yaml").write_text(BASE)
    Path("recipe.yaml").chmod(0)
    with pytest.raises(RecipeError, match="Permission denied"):
        load_recipe(Path("recipe.yaml"))


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [touch marker]",
        "!!python/name:os.system",
        "!x y",
        "! y",
        "!!str 3",
        "!!binary aGk=",
    ],
)
def test_tags_are_refused_and_run_nothing(tag):
    problem = problem_of(f"name: {tag}\n")
    assert (problem.code, problem.line, problem.column) == ("C106", 4, 7)
    assert not Path("marker").exists()


@pytest.mark.parametrize("key", ["_target_", "_component_", "_partial_", "<<"])
def test_dotted_path_instantiation_and_merge_keys_are_unknown_keys(key):
    problem = problem_of(
        f"model:\n  name_or_path: smollm2-135m-instruct\n  {key}: os.system\n{BASE.partition(chr(10))[2]}", base=False
    )
    assert (problem.code, problem.line, problem.column) == ("C102", 3, 3)


def test_environment_interpolation_is_an_error_not_a_folder_of_that_name():
    assert problem_of(BASE.replace("runs/x", "${oc.env:HOME}/x"), base=False).code == "C103"
    assert problem_of(BASE.replace("smollm2-135m-instruct", '"${HOME}/x"'), base=False).code == "C130"
    assert problem_of(BASE.replace("rows.jsonl", '"${HOME}"'), base=False).code == "C130"


def _bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "nine levels of nine aliases": _bomb(9, 9),
    "wide aliases": _bomb(3, 100),
    "an alias inside itself": "name: &a [*a]\n",
    "an alias inside itself, deeper": "name: &a {b: {c: *a}}\n",
    "an unknown alias": "name: *nothing\n",
    "deep lists": "name: " + "[" * 10_000 + "]" * 10_000 + "\n",
    "deep mappings": "name: " + "{a: " * 3_000 + "}" * 3_000 + "\n",
    "deep block lists": "name:\n  " + "- " * 5_000 + "x\n",
    "deep through aliases": "a: &a " + "[" * 20 + "]" * 20 + "\nb: &b " + "[" * 20 + "*a" + "]" * 20 + "\n",
    "many anchors": "".join(f"k{index}: &a{index} [{index}]\n" for index in range(9_000)),
    "many unknown keys": "".join(f"unknown_key_{index}: 1\n" for index in range(9_000)),
    "a long key": "k" * 500_000 + ": 1\n",
    "a long text": "learning_rate: " + "x" * 900_000 + "\n",
    "many values": "name: [" + "1, " * 300_000 + "]\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_bombs_fail_within_seconds(text):
    started = time.process_time()
    found = problems_of(text)
    assert time.process_time() - started < 10.0, "the slowest takes 1 s; what is expanded without bound takes hours"
    assert all(problem.code in {"C101", "C102", "C103", "C106"} for problem in found)
    assert len(found) <= 101
    assert all(len(problem.render()) < 1_500 for problem in found)


def test_an_alias_inside_itself_is_called_that():
    assert "*a contains itself" in problem_of("name: &a {b: [*a]}\n").message


def test_an_honest_alias_is_expanded_and_its_errors_stand_where_the_value_stands():
    recipe = load("""\
        evaluate:
          tasks:
            - {name: a, path: rows.jsonl, metric: exact, map: &map {user: q}}
            - {name: b, path: rows.jsonl, metric: exact, map: *map}
        """)
    assert recipe.evaluate.tasks[1].map == {"user": "q"}
    problem = problem_of(
        "evaluate:\n  tasks:\n    - &t {name: a, path: rows.jsonl, metric: exact, mtric: 1}\nname: x\n"
    )
    assert (problem.line, problem.column) == (6, 53)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=often(150), deadline=None)
@given(value=json_values)
def test_what_dump_yaml_writes_reads_back_as_the_same_values(value):
    document = parse_yaml(dump_yaml({"value": value}), origin="x")
    assert document.problems == []
    assert document.value == {"value": value}
    assert dump_yaml(document.value) == dump_yaml({"value": value})


@pytest.mark.parametrize(
    "text", ["no", "1e-4", "012", "null", "a: b", "a #b", "- x", "*.jsonl", "&a", "", " x", "12:30:00", "\u2028"]
)
def test_dump_yaml_quotes_what_any_yaml_would_read_as_something_else(text):
    assert dump_yaml({"k": text}).startswith('k: "')


def test_dump_yaml_refuses_what_yaml_cannot_say():
    with pytest.raises(ValueError, match="finite"):
        dump_yaml({"k": math.inf})
    with pytest.raises(TypeError, match="set"):
        dump_yaml({"k": {1}})
