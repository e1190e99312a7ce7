"""CSV, TSV, parquet and arrow: text stays text, types stay types, and nothing is converted."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from tests.data.reading import ANSWER, CHAT, USER, faults, messages, problems, read

QA = {"user": "q", "assistant": "a"}


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def table_file(path: Path, columns: dict[str, Any]) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        make = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


def test_cells_stay_text_with_quotes_breaks_and_empty_cells(tmp_path: Path) -> None:
    """B56."""
    path = text_file(tmp_path / "a.csv", 'q,a\n007,"x ""y"", z"\n"two\nlines",1e5\n,null\n')
    result = read(path, map=QA)
    assert [[m["content"] for m in messages(result, i)] for i in range(3)] == [
        ["007", 'x "y", z'],
        ["two\nlines", "1e5"],
        ["", "null"],
    ]
    assert [row.ref.line for row in result.conversations] == [2, 3, 5]


def test_a_csv_file_may_have_a_mark_crlf_blank_lines_and_long_cells(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = text_file(tmp_path / "a.csv", f"\ufeffq,a\r\n1,2\r\n\r\n3,{long}\r\n")
    result = read(path, map=QA)
    assert messages(result, 1)[1]["content"] == long
    assert "1 blank lines skipped" in result.notes


def test_tabs_divide_the_cells_of_a_tsv_file(tmp_path: Path) -> None:
    result = read(text_file(tmp_path / "a.tsv", "q\ta\n1,5\tx\n"), map=QA)
    assert [m["content"] for m in messages(result)] == ["1,5", "x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q,a\n1\n1,2\n1,2,3\n", ["2:None D211 1 cell, but the header has 2: q, a", "4:None D211 3 cells"]),
        ("q,q\n1,2\n", ["1:None D211 column names stand twice: 'q'"]),
        ("q;a\n1;2\n", ["1:None D211 one column only, named 'q;a': the cells seem to be divided by ';'"]),
        ('q,a\n1,"x"y\n1,2\n', ["2:None D211 broken row: ',' expected after '\"'"]),
        ('q,a\n1,2\n3,"x\n', ["3:None D211 broken row: unexpected end of data"]),
        (b"q,a\n1,2\n1,\xff\n3,\xe4\n", ["3:3 D205 not UTF-8", "4:3 D205 not UTF-8"]),
        ("q,a\n1,\x00\n", ["2:3 D203 NUL character"]),
        ("", ["None:None D206 the file has no rows"]),
        ("q,a\n", ["None:None D206 the file has no rows"]),
    ],
)
def test_broken_csv_rows_are_named_by_line(tmp_path: Path, text: str | bytes, expected: list[str]) -> None:
    found = faults(text_file(tmp_path / "a.csv", text), map=QA)
    assert len(found) == len(expected), found
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow", "file.feather"])
def test_text_columns_of_tables_are_read_exactly(tmp_path: Path, name: str) -> None:
    """B56."""
    answers = ["2024-01-01", "007", "null", "1e5", ""]
    path = table_file(tmp_path / name, {"q": ["x"] * 5, "a": pa.array(answers).dictionary_encode(), "id": range(5)})
    result = read(path, map=QA, on_empty="drop")
    assert [messages(result, i)[1]["content"] for i in range(4)] == answers[:4]
    assert [str(row.ref) for row in result.dropped] == [f"{path}:5"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([datetime.date(2024, 1, 1)], "date32[day]"),
        ([datetime.datetime(2024, 1, 1)], "timestamp[us]"),
        ([decimal.Decimal("1.10")], "decimal128(3, 2)"),
        ([7], "int64"),
        ([1.5], "double"),
        ([True], "bool"),
        ([b"x"], "binary"),
        ([datetime.time(1)], "time64[us]"),
    ],
)
def test_a_typed_column_where_text_is_needed_is_one_error_with_the_fix(
    tmp_path: Path, values: list[Any], kind: str
) -> None:
    path = table_file(tmp_path / "a.parquet", {"q": ["x"] * 300, "a": values * 300, "other": values * 300})
    (problem,) = problems(path, map=QA)
    assert problem.code == "D212"
    assert f"column `a` is of type {kind}, but text is needed" in problem.message
    assert 'df["a"].astype(str)' in (problem.hint or "")


def test_dates_inside_records_of_a_table_are_refused(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"day": datetime.date(2024, 1, 1)}}
    path = table_file(tmp_path / "a.parquet", {"messages": [[USER, {**ANSWER, "tool_calls": [{"function": call}]}]]})
    (problem,) = problems(path)
    assert "column `messages` is of type date32[day]" in problem.message


def test_messages_in_a_table_lose_the_nulls_a_table_cannot_leave_out(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": null}'}}],
    }
    rows = [[USER, {**ANSWER, "weight": 0.5}], [USER, call]]
    path = table_file(tmp_path / "a.parquet", {"messages": rows, "tools": [None, json.dumps([{"name": "f"}])]})
    result = read(path)
    assert messages(result, 0) == [USER, ANSWER]
    assert result.conversations[0].message_weights == (None, 0.5)
    assert messages(result, 1) == [USER, {"role": "assistant", "tool_calls": call["tool_calls"]}]
    assert result.conversations[1].tools == [{"name": "f"}]
    assert any("read as `not there`" in note for note in result.notes)


def test_a_null_cell_is_an_error_and_no_text(tmp_path: Path) -> None:
    path = table_file(tmp_path / "a.parquet", {"q": ["x", "y"], "a": ["z", None]})
    assert faults(path, map=QA) == ["2:None D207 a: expected string, got null"]


def test_columns_inside_records_are_mapped(tmp_path: Path) -> None:
    path = table_file(tmp_path / "a.parquet", {"row": [{"q": "x", "a": "y", "n": 1}]})
    assert [m["content"] for m in messages(read(path, map={"user": "row.q", "assistant": "row.a"}))] == ["x", "y"]
    (problem,) = problems(path, map={"user": "row.q", "assistant": "row.n"})
    assert "column `row.n` is of type int64" in problem.message


def test_a_data_set_saved_to_disk_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": CHAT["messages"], "id": f"00{i}"} for i in range(5)]
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert read(tmp_path / "one").rows == 5
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "two").rows == 5
    assert read(tmp_path / "two", split="test").rows == 1
    assert "it has: test, train" in problems(tmp_path / "two", split="dev")[0].message


def test_a_saved_data_set_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    """F17."""
    folder = tmp_path / "set"
    folder.mkdir()
    table_file(tmp_path / "stream.arrow", {"text": ["secret"]})
    (folder / "dataset_info.json").write_text("{}")
    for name in ("../stream.arrow", str(tmp_path / "stream.arrow"), "state.json", 3):
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        assert "no arrow file of this folder" in problems(folder)[0].message
    (folder / "state.json").write_text("[]")
    assert "not the state" in problems(folder)[0].message


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_a_broken_table_is_named(tmp_path: Path, name: str) -> None:
    path = text_file(tmp_path / name, b"not a table at all")
    (problem,) = problems(path)
    assert (problem.code, problem.file) == ("D214", str(path))
    table_file(path, {"text": ["x" * 1000] * 1000})
    path.write_bytes(path.read_bytes()[:-200])
    assert problems(path)[0].code == "D214"


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    path = table_file(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    assert problems(path)[0].code == "D206"
