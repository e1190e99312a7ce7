"""`luthier data dedup`: shows before it drops; what stays, stays byte for byte."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.curate.write import write_without
from luthier.data.files import local_file
from tests.cli.calling import Caller, caller
from tests.curate.support import THEMES

ROW = '{{"messages": [{{"role":"user","content":"{0}"}} , {{"role": "assistant","content": "yes"}}], "id": {1}}}'


@pytest.fixture
def luthier(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Caller:
    return caller(monkeypatch, capfd)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Odd spaces, a blank line, CRLF, a copy in capitals, no line feed at the end."""
    texts = [ROW.format(THEMES[0], 1), "", ROW.format(THEMES[1], 2) + "\r", ROW.format(THEMES[0].upper(), 3),
             ROW.format(THEMES[2] + " now", 4), ROW.format(THEMES[2], 5.0)]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_bytes("\n".join(texts).encode())
    return file


def test_it_shows_and_writes_nothing(luthier: Caller, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    before = rows.read_bytes()
    said = luthier("data", "dedup", "rows.jsonl")
    assert said.code == 0, said.err
    assert "exact: 1 of 5 rows dropped" in said.out and "fuzzy 0.8: 1 of 4 rows dropped" in said.out
    assert "5 rows compared, 3 stay" in said.out
    assert "rows.jsonl:6" in said.out and "{+ now+}" in said.out
    assert "nothing is written" in said.err
    assert rows.read_bytes() == before and [file.name for file in rows.parent.iterdir()] == ["rows.jsonl"]


def test_rows_that_stay_are_the_same_bytes(luthier: Caller, rows: Path) -> None:
    out = rows.with_name("kept.jsonl")
    said = luthier("data", "dedup", rows, "--out", out, "--json")
    assert said.code == 0, said.err
    lines = rows.read_bytes().splitlines(keepends=True)
    assert out.read_bytes() == b"".join([lines[0], lines[1], lines[2], lines[4]])
    value = said.json
    assert value["rows"] == 5 and value["kept"] == 3 and value["dropped"] == {"exact": 1, "fuzzy": 1}
    assert value["written"] == {str(out): 3, str(rows.with_name("kept.dropped.jsonl")): 2}
    listed = [json.loads(text) for text in rows.with_name("kept.dropped.jsonl").read_text("utf-8").splitlines()]
    assert listed == value["duplicates"]
    assert [(item["line"], item["stage"], item["duplicate_of"]) for item in listed] == [
        (4, "exact", f"{rows}:1"), (6, "fuzzy", f"{rows}:5"),
    ]  # fmt: skip
    again = luthier("data", "dedup", out, "--json").json
    assert again["dropped"] == {"exact": 0, "fuzzy": 0}


def test_dry_run_writes_nothing(luthier: Caller, rows: Path) -> None:
    said = luthier("data", "dedup", rows, "--out", rows.with_name("kept.jsonl"), "--dry-run")
    assert said.code == 0 and "--dry-run" in said.err
    assert [file.name for file in rows.parent.iterdir()] == ["rows.jsonl"]


def test_options_change_what_is_found(luthier: Caller, rows: Path) -> None:
    assert luthier("data", "dedup", rows, "--no-fuzzy", "--json").json["dropped"] == {"exact": 1}
    assert luthier("data", "dedup", rows, "--no-exact", "--fuzzy", 1, "--ignore", "none", "--json").json["kept"] == 5
    assert luthier("data", "dedup", rows, "--on", "answer", "--json").json["kept"] == 1
    longest = luthier("data", "dedup", rows, "--keep", "longest", "--json").json["duplicates"]
    assert [item["line"] for item in longest] == [4, 6]
    score = luthier("data", "dedup", rows, "--keep", "score", "--score", "id", "--json").json["duplicates"]
    assert [item["line"] for item in score] == [1, 5]


def test_several_files_go_into_a_folder(luthier: Caller, rows: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_bytes(f'q,a\n"{THEMES[1]}\n",yes\n{THEMES[3]},yes\n'.encode())
    said = luthier("data", "dedup", rows, "--out", tmp_path / "new", rows.with_name("gone.jsonl"))
    assert said.code == 3 and "gone.jsonl" in said.err
    other = tmp_path / "other.jsonl"
    other.write_text(ROW.format(THEMES[1], 1) + "\n" + ROW.format(THEMES[4], 2) + "\n")
    said = luthier("data", "dedup", rows, other, "--out", tmp_path / "new")
    assert said.code == 0, said.err
    assert (tmp_path / "new" / "other.jsonl").read_text() == ROW.format(THEMES[4], 2) + "\n"
    assert (tmp_path / "new" / "rows.jsonl").is_file() and (tmp_path / "new" / "all.dropped.jsonl").is_file()
    csv = luthier("data", "dedup", more, "--map", "user=q", "--map", "assistant=a", "--json")
    assert csv.json["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", "rows.jsonl"], 2, "is a source"),
        (["--out", "rows.csv"], 2, "must be of the same kind"),
        (["--out", "there.jsonl"], 2, "exists"),
        (["--fuzzy", "1.5"], 2, "--fuzzy must be a number > 0 and <= 1; got 1.5"),
        (["--on", "question"], 2, '--on must be one of "conversation"'),
        (["--no-exact", "--no-fuzzy"], 2, "nothing would be found"),
        (["--keep", "score"], 2, "needs `score`"),
        (["--ignore", "spaces"], 2, "--ignore must be"),
        (["--map", "user"], 2, "has no `=`"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(
    luthier: Caller, rows: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(rows.parent)
    Path("there.jsonl").write_text("mine")
    before = rows.read_bytes()
    said = luthier("data", "dedup", "rows.jsonl", *arguments)
    assert said.code == code and words in said.err, said.err
    assert rows.read_bytes() == before and Path("there.jsonl").read_text() == "mine"


def test_force_replaces_an_earlier_result(luthier: Caller, rows: Path) -> None:
    out = rows.with_name("kept.jsonl")
    out.write_text("old")
    assert luthier("data", "dedup", rows, "--out", out, "--force").code == 0
    assert out.read_bytes().count(b"\n") == 4


def test_rows_with_nothing_to_train_on_are_left_as_they_are(luthier: Caller, tmp_path: Path) -> None:
    empty = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}'
    texts = [empty, ROW.format(THEMES[0], 1), empty, ROW.format(THEMES[0], 2), ROW.format(THEMES[1], 3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(texts) + "\n")
    said = luthier("data", "dedup", file, "--out", tmp_path / "new.jsonl")
    assert "not compared and left as they are: 2" in said.out
    assert (tmp_path / "new.jsonl").read_text() == "\n".join(texts[:3] + texts[4:]) + "\n"
    (tmp_path / "one.json").write_text("[" + ", ".join(texts) + "]")
    said = luthier("data", "dedup", tmp_path / "one.json", "--out", tmp_path / "two.json")
    assert said.code == 3 and "D232" in said.err and not (tmp_path / "two.json").exists()


def test_pairs_are_compared_as_pairs(luthier: Caller, tmp_path: Path) -> None:
    question = "where does the river go to in the end"
    answers = [("to the sea", "nowhere"), ("nowhere", "to the sea"), ("To the  sea", "nowhere")]
    texts = [json.dumps({"prompt": question, "chosen": good, "rejected": bad}) for good, bad in answers]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(texts) + "\n")
    assert luthier("data", "dedup", file).code == 3
    said = luthier("data", "dedup", file, "--objective", "dpo", "--out", tmp_path / "new.jsonl")
    assert said.code == 0 and "duplicates:" in said.out, said.err
    assert (tmp_path / "new.jsonl").read_text() == "\n".join(texts[:2]) + "\n"
    said = luthier("data", "dedup", file, "--objective", "kto")
    assert said.code == 3 and "D232" in said.err and "--objective dpo" in said.err
    assert luthier("data", "dedup", file, "--objective", "ppo").code == 2


# -- writing


def without(folder: Path, name: str, data: bytes, places: set[int]) -> bytes:
    (folder / name).write_bytes(data)
    write_without(local_file(folder / name), places, folder / f"new-{name}")
    return (folder / f"new-{name}").read_bytes()


def test_json_elements_keep_their_text(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf [\n  {"a":1.0 , "b": "]"},\n  {"a": 2},{"a": [3]}\n]\n'
    assert without(tmp_path, "a.json", text, {1}) == b' [\n  {"a":1.0 , "b": "]"},{"a": [3]}\n]\n'
    assert without(tmp_path, "b.json", text, {0}) == b' [\n  {"a": 2},{"a": [3]}\n]\n'
    assert without(tmp_path, "c.json", text, {2, 1}) == b' [\n  {"a":1.0 , "b": "]"}\n]\n'
    nested = b'{"version": {"data": []}, "data": [{"a": 1}, {"a": 2}], "end": [1]}'
    assert without(tmp_path, "d.json", nested, {0}) == b'{"version": {"data": []}, "data": [{"a": 2}], "end": [1]}'
    assert without(tmp_path, "e.json", b'{"a": 1}\n{"a": 2}\n', {0}) == b'{"a": 2}\n'


def test_csv_rows_of_several_lines(tmp_path: Path) -> None:
    data = b'q,a\r\n"one\r\n\r\nmore",1\r\n"two ""x""",007\r\n\r\nthree,3'
    assert without(tmp_path, "a.csv", data, {0}) == b'q,a\r\n"two ""x""",007\r\n\r\nthree,3'
    assert without(tmp_path, "b.csv", data, {1}) == b'q,a\r\n"one\r\n\r\nmore",1\r\nthree,3'


@settings(max_examples=30)
@given(texts=st.lists(st.text("ab \n\"',", max_size=6), min_size=1, max_size=6), data=st.data())
def test_any_csv_reads_as_the_rows_that_stay(texts: list[str], data: Any, tmp_path_factory: Any) -> None:
    import csv
    import io

    places = data.draw(st.sets(st.sampled_from(range(len(texts)))))
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["q", "a"], *([text, "x"] for text in texts)])
    rest = without(tmp_path_factory.mktemp("csv"), "a.csv", stream.getvalue().encode(), places)
    read = list(csv.reader(io.StringIO(rest.decode(), newline="")))
    assert [row for row in read if row] == [["q", "a"], *([t, "x"] for i, t in enumerate(texts) if i not in places)]


def test_gzip_and_tables(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    packed = without(tmp_path, "a.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'), {0})
    assert gzip.decompress(packed) == b'{"a": 2}\n'
    schema = pyarrow.schema([("q", pyarrow.large_string()), ("n", pyarrow.int8())], metadata={"by": "us"})
    table = pyarrow.table({"q": ["a", "b", "c"], "n": [1, None, 3]}, schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert write_without(local_file(tmp_path / "t.parquet"), {1}, tmp_path / "u.parquet") == 2
    read = pyarrow.parquet.read_table(tmp_path / "u.parquet")
    assert read.equals(table.take([0, 2]), check_metadata=True)
    with pyarrow.ipc.new_file(tmp_path / "t.arrow", schema) as writer:
        writer.write_table(table)
    assert write_without(local_file(tmp_path / "t.arrow"), {0}, tmp_path / "u.arrow") == 2
    with pyarrow.memory_map(str(tmp_path / "u.arrow")) as source:
        assert pyarrow.ipc.open_file(source).read_all().equals(table.take([1, 2]))
