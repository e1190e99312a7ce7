"""`luthier data label` from its arguments to its files."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.annotate.record import record_line
from tests.annotate.support import chats, says, user, write
from tests.annotate.test_log import record
from tests.cli.calling import Caller, caller


@pytest.fixture
def luthier(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Caller:
    return caller(monkeypatch, capfd)


@pytest.fixture
def types(luthier: Caller, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(text: str, *arguments: Any) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return luthier("data", "label", *arguments)

    return call


def test_label_status_and_export(types: Any, luthier: Caller, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(4))
    said = types("a\nr\ne better\nq\n", rows, "--annotator", "ann")
    assert said.code == 0 and len(said.out.splitlines()) == 3 and "3 of 4 rows decided on by ann" in said.err
    assert types("a\na\nx\n", rows, "--annotator", "bob").code == 2, "a refused command"
    found = luthier("data", "label", rows, "--status", "--json").json
    assert found["decided"] == 3 and len(found["conflicts"]) == 1 and found["agreement"][0]["rows"] == 2
    shown = luthier("data", "label", rows, "--status")
    assert "4 different rows" in shown.out and "Cohen's kappa" in shown.out and "a.jsonl:2" in shown.out
    done = luthier("data", "label", rows, "--export", tmp_path / "out.jsonl", "--json").json
    assert done["listing"] == str(tmp_path / "out.left_out.jsonl")
    assert done["rows"] == 2 and done["left_out"] == {"conflict": 1, "undecided": 1}
    assert len((tmp_path / "out.left_out.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1])["messages"] == [user("q2"), says("better")]
    again = luthier("data", "label", rows, "--export", tmp_path / "out.jsonl")
    assert again.code == 2 and "D296" in again.err
    alone = luthier("data", "label", rows, "--export", tmp_path / "out.jsonl", "--force", "--annotator", "ann")
    assert alone.code == 0 and "1 rejected, 1 undecided" in alone.out
    nobody = luthier("data", "label", rows, "--export", tmp_path / "no.jsonl", "--annotator", "cy")
    assert nobody.code == 2 and "annotators are: ann, bob" in nobody.err


def test_json_of_a_session_and_the_order(types: Any, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(8))
    options = (
        "--order",
        "high",
        "--score",
        "score",
        "--limit",
        "2",
        "--annotator",
        "ann",
        "--log",
        tmp_path / "own.labels",
    )
    said = types("a\na\na\n", rows, *options, "--json")
    assert said.code == 2 and said.json == {
        "annotator": "ann", "log": str(tmp_path / "own.labels"), "rows": 2, "decided": 2, "skipped": 0, "refused": 1,
    }  # fmt: skip
    lines = [json.loads(line)["line"] for line in (tmp_path / "own.labels").read_text().splitlines()]
    assert lines == [8, 7] and not (tmp_path / "a.jsonl.labels").exists()


def test_a_torn_log_and_a_changed_row_are_told(types: Any, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(2))
    types("a\na\n", rows, "--annotator", "ann")
    write(rows, [chats(1)[0], {"messages": [user("q1"), says("other")]}])
    with Path(f"{rows}.labels").open("ab") as stream:
        stream.write(record_line(record(9))[:20])
    said = types("", rows, "--annotator", "ann")
    assert "cut off (20 bytes" in said.err and f"{rows}:2 changed since ann decided on it" in said.err
    assert "1 of 2 rows decided on" in said.err


@pytest.mark.parametrize(
    ("options", "says_what"),
    [
        (["--order", "best"], "--order must be one of"),
        (["--order", "low"], "give both or none"),
        (["--score", "score"], "give both or none"),
        (["--as", "preference"], "are for --export"),
        (["--status", "--page"], "three things to do"),
        (["--export", "x.csv"], "must end in .jsonl"),
        (["--annotator", "\x1b"], "printable"),
        (["--annotator", ""], "--annotator: the name of an annotator has 1 to 60"),
        (["--annotator", " ", "--page"], "--annotator: the name of an annotator has 1 to 60"),
        (["--status", "--annotator", "ann"], "is for judging and --export"),
        (["--status", "--limit", "2", "--no-blind"], "are for judging; got --blind, --limit"),
        (["--export", "new.jsonl", "--skipped"], "are for judging; got --skipped"),
        (["--force"], "are for --export; got --force"),
        (["--port", "80"], "is for --page"),
        (["--around", "0.1"], "--around is for --order uncertain"),
        (["--order", "low", "--score", "none"], "no column `none`"),
        (["--map", "user"], "has no `=`"),
    ],
)
def test_what_cannot_be_is_told(types: Any, tmp_path: Path, options: list[str], says_what: str) -> None:
    rows = write(tmp_path / "a.jsonl", chats(1))
    said = types("a\n", rows, *options)
    assert said.code in {2, 3} and says_what in said.err
    assert not Path(f"{rows}.labels").exists() and not Path("new.jsonl").exists()


def test_where_nothing_is_decided_no_log_is_left(types: Any, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(2))
    assert types("q\n", rows, "--annotator", "ann").code == 0 and not Path(f"{rows}.labels").exists()
    assert types("a\n", rows, "--annotator", "ann").code == 0 and Path(f"{rows}.labels").exists()


def test_a_column_that_no_row_has_is_told_once(types: Any, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(30))
    said = types("", rows, "--order", "uncertain", "--score", "nosuch", "--json")
    assert said.code == 3 and [p["code"] for p in said.json["problems"]] == ["D292"]
    assert "none of the 30 rows has the column `nosuch`" in said.json["problems"][0]["message"]


def test_what_was_written_is_shown_as_it_is(types: Any, luthier: Caller, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(1))
    types("e [bold]x[/y] :smile:\n", rows, "--annotator", "ann")
    types("r\n", rows, "--annotator", "bob")
    said = luthier("data", "label", rows, "--status")
    assert said.code == 0 and "ann: edit: [bold]x[/y] :smile:; bob: reject" in said.out


def test_a_glob_needs_a_log_and_all_bad_rows_are_told(types: Any, tmp_path: Path) -> None:
    assert "no single path" in types("", f"{tmp_path}/*.jsonl").err
    bad = write(tmp_path / "a.jsonl", [*chats(1), {"messages": 7}, {"messages": [{"role": "x", "content": "y"}]}])
    said = types("", bad)
    assert said.code == 3 and "a.jsonl:2" in said.err and "a.jsonl:3" in said.err
