"""Which format rows are in: a verdict with a reason, or an error with a map to copy; never a guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.reading import ANSWER, CHAT, USER, faults, messages, problems, read, write

SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
ALPACA = {"instruction": "Add", "input": "1 2", "output": "3"}
PAIR = {"prompt": "hi", "completion": " hello"}
SEGMENTS = {"segments": [{"label": False, "text": "hi"}, {"label": True, "text": "hello"}]}
QA = {"question": "hi", "answer": "hello"}


@pytest.mark.parametrize(
    ("row", "kind", "sentence"),
    [
        (CHAT, "messages", "messages: 3 of 3 rows have a list `messages` with role and content"),
        (SHAREGPT, "sharegpt", "sharegpt: 3 of 3 rows have a list `conversations` of turns"),
        ({"messages": SHAREGPT["conversations"]}, "sharegpt", "sharegpt: 3 of 3 rows have a list `messages` of turns"),
        ({"conversations": [USER, ANSWER]}, "sharegpt", "sharegpt: 3 of 3 rows have a list `conversations` of turns"),
        (ALPACA, "alpaca", "alpaca: 3 of 3 rows have `instruction` and `output`"),
        (
            {**ALPACA, "text": "rendered"},
            "alpaca",
            "alpaca: 3 of 3 rows have `instruction` and `output`; columns not used: text",
        ),
        (PAIR, "prompt_completion", "prompt_completion: 3 of 3 rows have `prompt` and `completion`"),
        ({"text": "hello", "id": "7"}, "text", "text: 3 of 3 rows have a string `text`; columns not used: id"),
        (SEGMENTS, "segments", "segments: 3 of 3 rows have a list `segments` of pieces with label and text"),
    ],
)
def test_each_format_is_recognised_by_its_columns(
    tmp_path: Path, row: dict[str, Any], kind: str, sentence: str
) -> None:
    result = read(write(tmp_path / "a.jsonl", [row] * 3))
    assert (result.format, result.verdict) == (kind, sentence)


@pytest.mark.parametrize(
    ("row", "suggestion"),
    [
        (QA, "{user: question, assistant: answer}"),
        ({"input": "a", "output": "b"}, "{user: input, assistant: output}"),
        ({"Query": "a", "Response": "b", "id": "1"}, "{user: Query, assistant: Response}"),
        (
            {"system_prompt": "s", "question": "a", "response": "b"},
            "{system: system_prompt, user: question, assistant: response}",
        ),
        (
            {"instruction": "a", "context": "c", "response": "b"},
            "{instruction: instruction, input: context, output: response}",
        ),
        ({"dialog": SHAREGPT["conversations"], "id": "1"}, "{messages: dialog}"),
        ({"ticket": "a", "label": "b"}, "{user: ticket, assistant: label}"),
        ({"text": "a", "label": "b"}, "{user: text, assistant: label}"),
    ],
)
def test_unknown_columns_give_an_error_with_a_map_that_works(
    tmp_path: Path, row: dict[str, Any], suggestion: str
) -> None:
    path = write(tmp_path / "a.jsonl", [row] * 3)
    (problem,) = problems(path)
    assert problem.code == "D210"
    assert f"Columns found: {', '.join(sorted(row))}." in problem.message
    assert "alpaca (instruction, output)" in problem.message
    assert problem.hint == f"say which column is what, for instance `map: {suggestion}`"
    mapping = dict(part.split(": ") for part in suggestion.strip("{}").split(", "))
    assert messages(read(path, map=mapping))[-1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("row", "suggestion"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "{user: prompt, assistant: chosen}"),
        ({"prompt": "a", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "{messages: chosen}"),
    ],
)
def test_preferences_are_not_taken_for_examples_but_one_column_may_be(
    tmp_path: Path, row: dict[str, Any], suggestion: str
) -> None:
    path = write(tmp_path / "a.jsonl", [row] * 3)
    (problem,) = problems(path)
    assert problem.code == "D218"
    assert problem.hint.endswith(f"to train on one column, `map: {suggestion}`")
    mapping = dict(part.split(": ") for part in suggestion.strip("{}").split(", "))
    assert messages(read(path, map=mapping))[-1]["role"] == "assistant"


def test_columns_like_nothing_known_give_no_suggestion(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path / "a.jsonl", [{"x": 1, "y": 2}]))
    assert (problem.code, problem.hint) == ("D210", "add a `map`")


@pytest.mark.parametrize("row", [{**CHAT, "text": "x"}, {**CHAT, **SHAREGPT}, {**ALPACA, **PAIR}])
def test_rows_that_fit_two_formats_are_not_guessed(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", [row] * 3)
    (problem,) = problems(path)
    assert "more than one format" in problem.message
    chosen = (problem.hint or "").split("format: ")[1].strip("`")
    assert read(path, format=chosen).format == chosen


def test_one_row_of_turns_among_messages_is_named_and_does_not_change_the_verdict(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    turns = {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    found = faults(write(tmp_path / "a.jsonl", [good, turns, good]))
    assert all(fault.startswith("2:") for fault in found) and "`format: sharegpt`" in found[0]
    assert read(write(tmp_path / "b.jsonl", [turns, turns, turns])).format == "sharegpt"


def test_half_one_format_and_half_another_is_not_guessed(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path / "a.jsonl", [CHAT, ALPACA] * 3))
    assert problem.code == "D210"


def test_half_the_rows_are_not_enough_for_a_verdict(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path / "a.jsonl", [CHAT, {"x": "1"}] * 3))
    assert problem.code == "D210"
    assert "no known format" in problem.message


def test_a_bad_row_does_not_hide_the_shape_of_the_others(tmp_path: Path) -> None:
    rows = [{"messages": SHAREGPT["conversations"]}] * 3 + [{"messages": 3}]
    assert [(p.line, p.code) for p in problems(write(tmp_path / "a.jsonl", rows))] == [(4, "D207")]


def test_bad_rows_among_good_ones_do_not_change_the_verdict(tmp_path: Path) -> None:
    found = problems(write(tmp_path / "a.jsonl", [{"messages": "x"}, CHAT, CHAT]))
    assert [(p.line, p.code) for p in found] == [(1, "D207")]


def test_wrong_values_in_all_rows_are_named_row_by_row(tmp_path: Path) -> None:
    found = problems(write(tmp_path / "a.jsonl", [{"messages": "x"}, {"messages": 3}]))
    assert [p.message for p in found] == [
        "messages: expected a list of messages, got 'x'",
        "messages: expected a list of messages, got 3",
    ]


def test_a_map_of_roles_makes_a_conversation_in_the_right_order(tmp_path: Path) -> None:
    row = {"a": "hello", "s": "be kind", "q": "hi"}
    result = read(write(tmp_path / "a.jsonl", [row]), map={"assistant": "a", "user": "q", "system": "s"})
    assert messages(result) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    assert result.verdict == "messages: 1 of 1 rows have `q` (user) and `a` (assistant)"


def test_an_empty_system_column_gives_way_to_the_source_system(tmp_path: Path) -> None:
    rows = [{"s": "", **QA}, {"s": "own", **QA}]
    mapping = {"user": "question", "assistant": "answer", "system": "s"}
    result = read(write(tmp_path / "a.jsonl", rows), map=mapping, system="given")
    assert [messages(result, i)[0]["content"] for i in (0, 1)] == ["given", "own"]


def test_dots_reach_into_nested_objects_and_a_dotted_name_wins(tmp_path: Path) -> None:
    rows = [{"row": {"q": "nested", "a": "x"}}, {"row": {"q": "nested", "a": "x"}, "row.q": "flat"}]
    result = read(write(tmp_path / "a.jsonl", rows), map={"user": "row.q", "assistant": "row.a"})
    assert [messages(result, i)[0]["content"] for i in (0, 1)] == ["nested", "flat"]


@pytest.mark.parametrize(
    ("row", "mapping", "kind"),
    [
        ({"talk": [USER, ANSWER]}, {"messages": "talk"}, "messages"),
        ({"talk": SHAREGPT["conversations"]}, {"messages": "talk"}, "sharegpt"),
        ({"talk": SHAREGPT["conversations"]}, {"conversations": "talk"}, "sharegpt"),
        ({"a": "x", "b": "y"}, {"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"a": "x", "b": "y", "c": "z"}, {"instruction": "a", "input": "b", "output": "c"}, "alpaca"),
        ({"body": "x"}, {"text": "body"}, "text"),
    ],
)
def test_a_map_of_fields_chooses_the_format(
    tmp_path: Path, row: dict[str, Any], mapping: dict[str, str], kind: str
) -> None:
    assert read(write(tmp_path / "a.jsonl", [row]), map=mapping).format == kind


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"map": {"user": "question", "assistant": "anwser"}},
            "no column `anwser` (format messages); columns found: answer, question",
        ),
        ({"map": {"user": "question", "assistant": "answer", "system": "s"}}, "no column `s`"),
        ({"map": {"user": "question"}}, "has no `assistant`"),
        ({"map": {"question": "user", "answer": "assistant"}}, "`map` keys question, answer belong to no one format"),
        ({"map": {"usr": "question", "assistant": "answer"}}, "has no `user`"),
        (
            {"map": {"user": "question", "assistant": "answer", "bot": "x"}},
            "`map` has `bot`, no field of format `messages`",
        ),
        ({"format": "alpaca", "map": {"question": "x"}}, "`map` has `question`, no field of format `alpaca`"),
        ({"format": "alpaca"}, "no column `instruction`, `output` (format alpaca); columns found: answer, question"),
        ({"format": "messages"}, "no column `messages`"),
    ],
)
def test_a_wrong_map_or_format_is_one_error_that_lists_the_columns(
    tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    found = problems(write(tmp_path / "a.jsonl", [QA] * 20), **keys)
    assert len(found) == 1
    assert found[0].code == "D209"
    assert says in found[0].message
    assert found[0].hint


def test_a_mapped_column_missing_in_one_row_is_named_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [QA, {"question": "x", "other": "y"}])
    (problem,) = problems(path, map={"user": "question", "assistant": "answer"})
    assert (problem.line, problem.message) == (2, "no column `answer`; the row has: question, other")


def test_broken_lines_are_told_together_with_an_unknown_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [QA])
    path.write_text(path.read_text() + "broken\n")
    assert [p.code for p in problems(path)] == ["D202", "D210"]
