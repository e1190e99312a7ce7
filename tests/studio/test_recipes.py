"""A form beside an editor: what one changes in the text is that, and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.plan.search import make_plan
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import RecipeError
from luthier.studio.recipes.check import _preflight, check_text, planned
from luthier.studio.recipes.edit import edit_text
from tests.plan.support import request
from tests.support.tiny import save_tiny

TEXT = """\
# A recipe of mine.
version: 1
name: "Tickets"     # shown in reports
model: {name_or_path: base}
data:
  train:
    - path: rows.jsonl   # the rows
      limit: 10
  max_length: 256
method:
  name: lora
train:
  learning_rate: 1e-3  # found by lr-find
  max_steps: 5
output_dir: runs/one
"""
KEYS = [
    "name",
    "data.max_length",
    "data.train.0.limit",
    "data.train.0.path",
    "train.learning_rate",
    "output_dir",
    "method.r",
    "train.seed",
    "model.name_or_path",
    "run_note",
]


def value_at(text, key):
    value = parse_yaml(text, origin="x").value
    for part in key.split("."):
        value = value[int(part) if part.isdigit() else part]
    return value


@given(
    st.sampled_from(KEYS),
    st.one_of(
        st.integers(-5, 10**9),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30),
    ),
)
def test_one_value_changes_and_all_else_stays(key, value):
    edited = edit_text(TEXT, [{"key": key, "value": value}])
    assert value_at(edited, key) == value
    kept = [
        line
        for line in TEXT.splitlines()
        if not any(line.lstrip(" -").startswith(f"{key.split('.')[-1]}:") for _ in [0])
    ]
    missing = [line for line in kept if line not in edited.splitlines()]
    assert len(missing) <= 1 and all("base" in line for line in missing)
    assert edit_text(edited, [{"key": key, "value": value}]) == edited


def test_comments_stay():
    edited = edit_text(
        TEXT, [{"key": "train.learning_rate", "value": 0.5}, {"key": "data.train.0.limit", "value": None}]
    )
    assert "learning_rate: 0.5  # found by lr-find" in edited and "limit: null" in edited and "# the rows" in edited


def test_lists_and_objects():
    edited = edit_text(
        TEXT, [{"key": "method.target_modules", "value": "all-linear"}, {"key": "tags", "value": ["a: b", "#c"]}]
    )
    assert value_at(edited, "tags") == ["a: b", "#c"] and value_at(edited, "method.target_modules") == "all-linear"
    edited = edit_text(TEXT, [{"key": "method", "value": {"name": "full"}}])
    assert value_at(edited, "method") == {"name": "full"} and value_at(edited, "train.max_steps") == 5


def test_removing():
    edited = edit_text(
        TEXT,
        [
            {"key": "train.max_steps", "remove": True},
            {"key": "name", "remove": True},
            {"key": "absent", "remove": True},
        ],
    )
    assert "max_steps" not in edited and "Tickets" not in edited and value_at(edited, "train.learning_rate") == 1e-3
    edited = edit_text(edited, [{"key": "train.learning_rate", "remove": True}])
    assert parse_yaml(edited, origin="x").value["train"] is None
    assert edit_text("a: 1\n", [{"key": "a", "remove": True}]) == ""


def test_an_empty_text_gets_its_first_key():
    assert edit_text("", [{"key": "output_dir", "value": "runs/x"}]) == "output_dir: runs/x\n"


@pytest.mark.parametrize(
    "change",
    [
        {"key": "a..b", "value": 1},
        {"key": "", "value": 1},
        {"value": 1},
        {"key": 3, "value": 1},
        {"key": "a b", "value": 1},
        {"key": "data.train.7.path", "value": "x"},
        {"key": "data.train.0.map.user", "value": "x"},
        {"key": "name.sub.more", "value": 1},
        {"key": "__class__.x", "value": [1]},
    ],
)
def test_what_cannot_be_changed_is_refused(change):
    with pytest.raises(RecipeError) as error:
        edit_text(TEXT, [change])
    assert error.value.problems[0].code == "W140"


@pytest.mark.parametrize("key", ["method.name", "method.r"])
def test_a_key_that_shares_its_line_is_not_removed_with_its_neighbours(key):
    with pytest.raises(RecipeError, match="cannot be changed"):
        edit_text("method: {name: lora, r: 8}\nname: x\n", [{"key": key, "remove": True}])


def test_broken_texts_say_where():
    with pytest.raises(RecipeError) as error:
        edit_text("a: [\n", [{"key": "a", "value": 1}])
    assert error.value.problems[0].code == "C101"


def test_a_good_recipe_has_values_with_reasons_a_plan_and_checks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_FORCE_CPU", "1")
    save_tiny(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 20
    )
    found, recipe = check_text(TEXT, tmp_path)
    assert found["ok"] and found["output_dir"] == "runs/one" and found["exists"] == "no" and recipe is not None
    more = planned(recipe, tmp_path)
    resolved = {item["key"]: item for item in more["resolved"]}
    assert resolved["train.learning_rate"] == {"key": "train.learning_rate", "value": 1e-3, "reason": None}
    assert resolved["train.per_device_train_batch_size"]["reason"]
    plan = more["plan"]
    assert plan["fits"] and plan["time"]["steps"] == 5 and plan["memory"]["free"] >= 0
    assert sum(plan["memory"]["parts"].values()) > 0 and "fingerprint" not in plan
    states = {check["name"]: check["state"] for check in more["preflight"]}
    assert states == {
        "device": "ok",
        "model": "ok",
        "data": "ok",
        "memory": "ok",
        "disk": "ok",
        "servable": "ok",
        "template": "unknown",
        "eos": "unknown",
        "truncation": "unknown",
    }


def test_what_is_offloaded_is_checked_against_this_host(tmp_path):
    asked = request({"name": "full"}, gpu="H100")
    enough = make_plan(replace(asked, host_memory=2**40))
    found = {check["name"]: check for check in _preflight(asked.recipe, enough, tmp_path)}
    assert (found["memory"]["state"], found["host memory"]["state"]) == ("ok", "ok")
    assert "1024.0 GiB free" in found["host memory"]["text"]
    short = make_plan(replace(asked, host_memory=2**30))
    found = {check["name"]: check for check in _preflight(asked.recipe, short, tmp_path)}
    assert (found["memory"]["state"], found["host memory"]["state"]) == ("ok", "fail")
    assert found["host memory"]["text"].endswith(f"; {short.remedies[0].change}")
    assert "host memory" not in {check["name"] for check in _preflight(asked.recipe, make_plan(asked), tmp_path)}


def test_a_plan_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    found, recipe = check_text(TEXT, tmp_path)
    assert found["ok"]
    more = planned(recipe, tmp_path)
    assert more["plan"] is None and more["plan_problem"]["message"]
