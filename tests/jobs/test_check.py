"""The files of a job, line by line, before it waits: OpenAI's layouts, bad lines, hyperparameters that rows decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.jobs.check import auto_epochs, check_job
from luthier.jobs.create import job_from_body, recipe_of
from luthier.jobs.errors import LeaseLost
from luthier.jobs.records import JobRecord
from luthier.jobs.settings import EMBEDDED, ApiSettings, LimitsSection
from luthier.jobs.store import Store
from tests.jobs.making import open_store

MODEL = "gpt-4o-mini-2024-07-18"
SETTINGS = ApiSettings(models={MODEL: EMBEDDED})
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "5", "weight": 0},
        {"role": "user", "content": "Sure?", "name": "ann"},
        {"role": "assistant", "content": "4", "weight": 1},
    ]
}
TOOLS: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "assistant", "content": "Sun."},
    ],
    "tools": [TOOL],
    "parallel_tool_calls": False,
}
LEGACY: dict[str, Any] = {"prompt": "2+2=", "completion": " 4"}
DPO: dict[str, Any] = {
    "input": {"messages": [{"role": "user", "content": "2+2?"}], "tools": [TOOL], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "4"}],
    "non_preferred_output": [{"role": "assistant", "content": "5"}],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def upload(store: Store, rows: list[Any], name: str = "train.jsonl") -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return store.add_file("ann", name, "fine-tune", ["\n".join(lines).encode() + b"\n"]).id


def job(store: Store, rows: list[Any], settings: ApiSettings = SETTINGS, **changes: Any) -> JobRecord:
    body = {"model": MODEL, "training_file": upload(store, rows), **changes}
    return job_from_body(body, store, settings, "ann")


@pytest.mark.parametrize(
    ("row", "method", "format_"),
    [
        (CHAT, "supervised", "messages"),
        (TOOLS, "supervised", "messages"),
        (LEGACY, "supervised", "prompt_completion"),
        (DPO, "dpo", "openai_preference"),
    ],
)
def test_layouts_of_openai(store: Store, row: dict[str, Any], method: str, format_: str) -> None:
    result = check_job(job(store, [row] * 12, method={"type": method}), store, SETTINGS)
    assert result.error is None and result.rows == 12
    assert result.messages[0].startswith(f"train.jsonl: {format_}: 12 of 12 rows")


def test_all_layouts_of_chats_may_stand_in_one_file(store: Store) -> None:
    assert check_job(job(store, [CHAT, TOOLS] * 5), store, SETTINGS).error is None


def test_bad_lines_are_named(store: Store) -> None:
    rows: list[Any] = [CHAT] * 12
    rows[2] = "{not json"
    rows[4] = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 4}]}
    rows[6] = {"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows[7] = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": -1}]}
    rows[9] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[10] = {"text": "x"}
    error = check_job(job(store, rows), store, SETTINGS).error
    assert error is not None and (error["code"], error["param"]) == ("invalid_training_file", "training_file")
    lines = error["message"].split("\n")
    assert lines[0] == "Invalid training file train.jsonl: 6 problems"
    for line, words in zip(lines[1:], (
        "line 3, column", "messages[1].content: expected string, got 4", "unknown role 'usr'", "messages[1].weight",
        "line 10", "no column `messages`",
    ), strict=True):  # fmt: skip
        assert words in line
    assert [line.split(":")[0].split(",")[0] for line in lines[1:]] == [f"line {n}" for n in (3, 5, 7, 8, 10, 11)]
    assert str(store.home) not in error["message"]


def test_many_bad_lines_are_counted(store: Store) -> None:
    settings = ApiSettings(models=SETTINGS.models, limits=LimitsSection(shown_problems=3))
    rows = [CHAT] * 20 + ["{"] * 2_000
    error = check_job(job(store, rows), store, settings).error
    assert error is not None
    lines = error["message"].split("\n")
    assert lines[0].endswith(": 2,000 problems") and lines[-1] == "and 1,997 more" and len(lines) == 5


def test_control_characters_of_a_row_do_not_reach_the_message(store: Store) -> None:
    bad = {"messages": [{"role": "\x1b[31m\n", "content": "a"}, {"role": "assistant", "content": "b"}]}
    error = check_job(job(store, [CHAT] * 12 + [bad]), store, SETTINGS).error
    assert error is not None and all(line.isprintable() for line in error["message"].split("\n"))
    assert len(error["message"].split("\n")) == 2


@pytest.mark.parametrize(
    ("rows", "method", "words"),
    [
        ([CHAT] * 9, "supervised", "9 rows\nneeded are at least 10"),
        ([CHAT], "supervised", "1 row\nneeded are at least 10"),
        ([DPO] * 12, "supervised", "needed are single answers"),
        ([CHAT] * 12, "dpo", "needed are pairs"),
        (["[1]"] * 12, "supervised", "expected one object a line"),
        ([{"a": 1}] * 12, "supervised", "in no known format"),
        (["\n"], "supervised", "no rows"),
        ([{**DPO, "preferred_output": DPO["non_preferred_output"]}] * 12, "dpo", "12 problems"),
        (["\x00\x01\x02"], "supervised", "line 1"),
    ],
)
def test_files_that_cannot_be_used(store: Store, rows: list[Any], method: str, words: str) -> None:
    error = check_job(job(store, rows, method={"type": method}), store, SETTINGS).error
    assert error is not None and error["code"] == "invalid_training_file" and words in error["message"]


def test_the_validation_file_is_checked_too(store: Store) -> None:
    held_out = upload(store, [CHAT, "{"], "held.jsonl")
    result = check_job(job(store, [CHAT] * 12, validation_file=held_out), store, SETTINGS)
    assert result.error is not None and result.error["param"] == "validation_file"
    assert result.error["code"] == "invalid_validation_file" and "line 2" in result.error["message"]
    both = check_job(job(store, ["{"] * 12, validation_file=held_out), store, SETTINGS).error
    assert both is not None and both["param"] == "training_file"
    assert "Invalid training file" in both["message"] and "Invalid validation file held.jsonl" in both["message"]
    good = check_job(job(store, [CHAT] * 12, validation_file=upload(store, [CHAT], "one.jsonl")), store, SETTINGS)
    assert good.error is None and good.messages[1].startswith("one.jsonl: messages: 1 of 1 rows")


def test_keys_of_the_job_decide_how_rows_are_read(store: Store) -> None:
    rows = [{"q": "2+2?", "a": "4"}] * 12
    assert "in no known format" in check_job(job(store, rows), store, SETTINGS).error["message"]  # type: ignore[index]
    mapped = {"data": {"train": [{"map": {"user": "q", "assistant": "a"}}]}}
    assert check_job(job(store, rows, luthier=mapped), store, SETTINGS).error is None
    empty = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}
    assert "13" not in str(check_job(job(store, [CHAT] * 12 + [empty]), store, SETTINGS).rows)
    dropping = job(store, [CHAT] * 12 + [empty], luthier={"data": {"on_empty": "drop"}})
    result = check_job(dropping, store, SETTINGS)
    assert (result.error, result.rows) == (None, 12)


def test_a_job_whose_file_is_gone_is_a_result(store: Store) -> None:
    made = job(store, [CHAT] * 12)
    store.file_path(store.file(made.training_file)).unlink()
    error = check_job(made, store, SETTINGS).error
    assert error is not None and error["code"] == "invalid_job" and "gone" in error["message"]


def test_a_lost_lease_is_no_fault_of_the_file(store: Store) -> None:
    def lost() -> None:
        raise LeaseLost(code="J104", message="lost")

    with pytest.raises(LeaseLost):
        check_job(job(store, [CHAT] * 12), store, SETTINGS, tick=lost)


# -- hyperparameters


def test_rows_decide_epochs() -> None:
    assert [auto_epochs(rows) for rows in (1, 10, 33, 34, 1_000, 8_333, 8_334, 12_500, 25_000, 10**6)] == [
        25, 10, 3, 3, 3, 3, 2, 2, 1, 1
    ]  # fmt: skip


def test_auto_becomes_numbers(store: Store) -> None:
    result = check_job(job(store, [CHAT] * 12), store, SETTINGS)
    assert result.hyperparameters == {"n_epochs": 8, "batch_size": 4, "learning_rate_multiplier": 1.0}
    large = check_job(job(store, [CHAT] * 2_000), store, SETTINGS)
    assert large.hyperparameters == {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 1.0}
    given = job(store, [CHAT] * 12, hyperparameters={"n_epochs": 2, "batch_size": 3})
    assert check_job(given, store, SETTINGS).hyperparameters["n_epochs"] == 2


def test_what_was_resolved_makes_a_recipe_that_loads(store: Store) -> None:
    from dataclasses import replace

    from luthier.recipe.load import recipe_from_dict

    grpo = {"objective": {"name": "grpo", "grpo": {"rewards": [{"name": "number"}]}}}
    for keys in (
        {},
        {"train": {"max_steps": 3}},
        {"train": {"tokens_per_step": 100}},
        {"data": {"packing": True}},
        grpo,
    ):
        made = job(store, [CHAT] * 12, luthier=keys)
        result = check_job(made, store, SETTINGS)
        assert result.error is None
        found = recipe_of(replace(made, hyperparameters=result.hyperparameters), store, SETTINGS)
        recipe_from_dict(found, origin="test")
        assert ("rows_per_step" in found["train"]) == (keys in ({}, {"train": {"max_steps": 3}}))
