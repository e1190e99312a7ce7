"""`data stats`: every number against a second count of the same rows; the command on files and on a recipe."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.explore.rows import Explored
from luthier.explore.stats import compute_stats
from luthier.explore.stats_text import bar_lines, histogram_lines, stats_lines
from tests.cli.calling import caller, make_world, write_recipe, write_rows
from tests.explore.support import chat_row, item
from tests.support.often import often

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

texts = st.text(alphabet="ab \u00e9\U0001f600", max_size=6)
messages = st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), texts)
rows = st.lists(st.tuples(st.lists(messages, min_size=1, max_size=4), st.sampled_from(["train", "test"])), max_size=12)


@settings(max_examples=often(60), deadline=None)
@given(rows)
def test_counts_are_those_of_the_rows(drawn):
    items = [item(chat_row(own, line), split, f"{split}.jsonl") for line, (own, split) in enumerate(drawn, 1)]
    found = compute_stats(Explored(title="t", items=items), languages=False)
    assert found["rows"] == len(drawn) and sum(found["splits"].values()) == len(drawn)
    lengths = [sum(len(message["content"]) for message in own) for own, _ in drawn]
    assert found["characters"]["total"] == sum(lengths) == sum(entry["characters"] for entry in found["sources"])
    assert sum(count for *_, count in found["characters"]["rows"]["histogram"]) == len(drawn)
    assert found["roles"] == dict(Counter(m["role"] for own, _ in drawn for m in own).most_common())
    by_role = found["characters"]["by_role"]
    assert sum(entry["total"] for entry in by_role.values()) == sum(lengths)
    assert found["turns"]["total"] == sum(len(own) for own, _ in drawn)
    said = [tuple((m["role"], m["content"]) for m in own) for own, _ in drawn]
    assert found["duplicates"]["rows"] == len(said) - len(set(said))
    if drawn:
        assert found["longest"][0]["characters"] == max(lengths) and found["shortest"][0]["characters"] == min(lengths)
        place = int(found["longest"][0]["ref"].split(":")[1]) - 1
        assert lengths[place] == max(lengths)
    assert stats_lines(found)


def test_duplicates_across_splits_are_told_first():
    same = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    items = [item(chat_row(same, 1)), item(chat_row(same, 2)), item(chat_row(same, 3), "test"),
             item(chat_row(same, 4), "dropped")]  # fmt: skip
    found = compute_stats(Explored(title="t", items=items), languages=False)["duplicates"]
    assert (found["rows"], found["across_splits"]) == (3, 1)
    assert found["examples"][0] == {"row": "a.jsonl:3", "of": "a.jsonl:1"}


def test_tools_and_calls_are_counted():
    calls = [{"function": {"name": "f", "arguments": "{}"}}] * 2
    asked = [USER, {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "r"},
             {**ANSWER, "reasoning_content": "t"}]  # fmt: skip
    plain = [{"role": "system", "content": "s"}, USER, ANSWER]
    items = [item(chat_row(asked, 1, tools=[{"name": "f"}])), item(chat_row(plain, 2)), item(chat_row(plain, 3))]
    found = compute_stats(Explored(title="t", items=items), languages=False)
    assert found["tools"] == {"rows_with_tools": 1, "rows_with_calls": 1, "calls": 2, "rows_with_reasoning": 1}
    assert found["system"] == {"rows": 2, "different": 1} and found["turns"]["counts"] == {"3": 2, "4": 1}


@pytest.mark.skipif(importlib.util.find_spec("py3langid") is None, reason="py3langid is not installed")
def test_languages_are_guessed():
    said = [
        "The weather is fine today and we will walk along the river",
        "Das Wetter ist heute schön und wir gehen spazieren",
        "Il fait beau aujourd'hui et nous allons marcher le long de la rivière",
        "12 + 3",
    ]
    items = [item(chat_row([{"role": "user", "content": text}], line)) for line, text in enumerate(said, 1)]
    found = compute_stats(Explored(title="t", items=items))
    assert found["languages"] == {"en": 1, "de": 1, "fr": 1, "unknown": 1}


def test_languages_that_cannot_be_guessed_are_told(monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    explored = Explored(title="t", items=[item(chat_row([USER], 1))])
    assert compute_stats(explored)["languages"] is None and "languages are not guessed" in capfd.readouterr().err
    assert compute_stats(explored, languages=False)["languages"] is None and capfd.readouterr().err == ""


@given(st.dictionaries(st.text(alphabet="abcdef", min_size=1, max_size=3), st.integers(0, 10**6), max_size=15))
def test_bars_name_every_count_or_the_rest(counts):
    lines = bar_lines(counts)
    assert len(lines) <= 10
    shown = sum(int(line.rsplit(" ", 1)[1].replace(",", "")) for line in lines)
    assert shown == sum(counts.values())


def test_a_histogram_of_nothing():
    assert histogram_lines({"histogram": []}) == ["  no rows"]


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


def test_the_command_on_files_and_on_a_recipe(tmp_path, call):
    make_world(tmp_path)
    said = call("data", "stats", tmp_path / "rows.jsonl", "--test", tmp_path / "test.jsonl", "--no-languages")
    assert said.code == 0 and "20 rows (16 train, 4 test)" in said.out and "length of a row in characters" in said.out
    more = ("--tokenizer", tmp_path / "base", "--json", "--no-languages")
    counted = call("data", "stats", tmp_path / "rows.jsonl", *more).json
    assert counted["tokens"]["trained"] > 0 and counted["sources"][0]["tokens"] == counted["tokens"]["total"]
    task = {"name": "t", "path": str(tmp_path / "test.jsonl"), "metric": "exact"}
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, data={"validation": {"fraction": 0.25}, "max_length": 90},
                          evaluate={"tasks": [task]})  # fmt: skip
    value = call("data", "stats", recipe, "--no-languages", "--json").json
    checked = call("data", "check", recipe, "--json").json
    assert value["splits"].get("train", 0) == checked["rows_used"]
    assert value["splits"].get("validation", 0) == checked["validation_rows"] and value["splits"]["test"] == 4
    assert value["tokens"]["by_split"]["train"] == {"total": checked["tokens"], "trained": checked["trained_tokens"]}
    assert value["dropped"] == checked["dropped"] and value["tokens"]["max_length"] == 90
    shorter = call("data", "stats", recipe, "data.max_length=50", "--no-languages", "--json").json
    assert shorter["dropped"].get("overlong", 0) > value["dropped"].get("overlong", 0)


def test_what_does_not_fit_is_told(tmp_path, call):
    make_world(tmp_path)
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path)
    said = call("data", "stats", recipe, "--tokenizer", "x", "--map", "user=q")
    assert said.code == 2 and "--tokenizer, --map: the recipe decides that" in said.err
    assert call("data", "stats").code == 2
    missing = call("data", "stats", tmp_path / "no.jsonl", tmp_path / "neither.jsonl", "--json")
    assert missing.code == 3 and [p["code"] for p in missing.json["problems"]] == ["D200", "D200"]
    rows = [{"messages": [USER, {"role": "assistant", "content": ""}]}, {"messages": [USER, ANSWER]}]
    write_rows(tmp_path / "empty.jsonl", rows)
    value = call("data", "stats", tmp_path / "empty.jsonl", "--no-languages", "--json").json
    assert value["rows"] == 1 and value["dropped"] == {"empty": 1}
