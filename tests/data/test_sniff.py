"""A first look at a file, for `luthier init`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.sniff import sniff
from luthier.runtime.errors import DataError
from tests.data.reading import CHAT, write


def chats(answers: list[str]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]} for text in answers
    ]


def test_a_known_format_is_told_with_counts_and_lengths(tmp_path: Path) -> None:
    found = sniff(write(tmp_path / "a.jsonl", chats(["x" * length for length in range(1, 101)])))
    assert (found.format, dict(found.map), found.suggested) == ("messages", {}, False)
    assert (found.rows, found.looked_at, found.bad_rows, found.columns) == (100, 100, 0, ("messages",))
    assert found.verdict == "messages: 100 of 100 rows have a list `messages` with role and content"
    assert found.answer_characters == {"min": 1, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert found.characters == {"min": 2, "p50": 51, "p95": 96, "p99": 100, "max": 101}
    assert [row.messages[1]["content"] for row in found.samples] == ["x", "xx", "xxx"]


def test_all_lines_are_counted_but_few_are_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT] * 5_000)
    path.write_text(path.read_text() + "\nbroken\n")
    found = sniff(path)
    assert (found.rows, found.looked_at, found.bad_rows) == (5_001, 2_000, 0)


def test_question_and_answer_columns_are_a_suggestion(tmp_path: Path) -> None:
    found = sniff(write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b", "id": 1}] * 3))
    assert (found.format, dict(found.map), found.suggested) == (
        "messages",
        {"user": "question", "assistant": "answer"},
        True,
    )
    assert "check the `map`" in found.verdict


def test_rows_like_nothing_known_are_no_error_here(tmp_path: Path) -> None:
    found = sniff(write(tmp_path / "a.jsonl", [{"x": 1, "y": 2}] * 3))
    assert (found.format, dict(found.map), found.metric, found.answers, found.characters) == (
        None,
        {},
        None,
        "none",
        {},
    )
    assert "Columns found: x, y" in found.verdict
    assert (found.rows, found.bad_rows) == (3, 3)


def test_bad_rows_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT] * 10 + [{"messages": [3]}] * 5)
    path.write_text(path.read_text() + "broken\n" * 3)
    found = sniff(path)
    assert (found.rows, found.bad_rows, len(found.samples)) == (18, 8, 3)
    assert len(found.problems) == 3


@pytest.mark.parametrize(
    ("answers", "kind", "metric"),
    [
        ([json.dumps({"a": i}) for i in range(40)], "json", "json_exact"),
        ([f"so it is\n#### {i},000" for i in range(40)], "number", "number"),
        ([f"${i}.50" for i in range(40)], "number", "number"),
        (["positive", "negative"] * 20, "label", "exact"),
        ([f"A different sentence for {'x' * i} each." for i in range(40)], "text", None),
        ([f"word{'y' * i}" for i in range(40)], "text", None),
        ([json.dumps({"a": 1})] * 30 + ["sorry"] * 10, "label", "exact"),
    ],
)
def test_the_look_of_the_answers_chooses_a_metric(
    tmp_path: Path, answers: list[str], kind: str, metric: str | None
) -> None:
    found = sniff(write(tmp_path / "a.jsonl", chats(answers)))
    assert (found.answers, found.metric) == (kind, metric)


def test_tables_and_csv_files_are_counted_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a"] * 3_000, "completion": ["b"] * 3_000}), tmp_path / "a.parquet")
    assert (sniff(tmp_path / "a.parquet").rows, sniff(tmp_path / "a.parquet").format) == (3_000, "prompt_completion")
    (tmp_path / "a.csv").write_text("instruction,output\n" + '"a\nb",c\n' * 2_500)
    assert (sniff(tmp_path / "a.csv").rows, sniff(tmp_path / "a.csv").format) == (2_500, "alpaca")


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        sniff(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("broken\n")
    with pytest.raises(DataError, match="D202"):
        sniff(tmp_path / "b.jsonl")
