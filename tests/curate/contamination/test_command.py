"""`luthier data decontaminate`: shows before it drops; what stays, stays byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.calling import Caller, caller
from tests.curate.contamination.support import clean, evaluation


@pytest.fixture
def luthier(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Caller:
    return caller(monkeypatch, capfd)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """[a] in the name of the file; the second row is an evaluation row."""
    monkeypatch.chdir(tmp_path)
    own = [{"question": one.messages[0]["content"], "answer": one.messages[1]["content"]} for one in clean()[:5]]
    tested = [{"question": one.messages[0]["content"], "answer": one.messages[1]["content"]} for one in evaluation()]
    own.insert(1, tested[3])
    (tmp_path / "train[a].jsonl").write_text("".join(json.dumps(row) + " \n" for row in own), "utf-8")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tested), "utf-8")
    return tmp_path


MAPS = (
    "--map",
    "user=question",
    "--map",
    "assistant=answer",
    "--against-map",
    "user=question",
    "--against-map",
    "assistant=answer",
)


def test_it_shows_and_writes_nothing(luthier: Caller, rows: Path) -> None:
    said = luthier("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS)
    assert said.code == 0, said.err
    assert "6 training rows against" in said.out and "1 copy" in said.out and "1 rows would go, 5 stay" in said.out
    assert "train[a].jsonl:2" in said.out.replace("\n", "") and "certainty 1.00" in said.out
    assert "nothing is written" in said.err
    assert {file.name for file in rows.iterdir()} == {"train[a].jsonl", "test.jsonl"}


def test_rows_that_stay_are_the_same_bytes(luthier: Caller, rows: Path) -> None:
    said = luthier(
        "data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS, "--out", "kept.jsonl", "--json"
    )
    assert said.code == 0, said.err
    lines = (rows / "train[a].jsonl").read_bytes().splitlines(keepends=True)
    assert (rows / "kept.jsonl").read_bytes() == b"".join([lines[0], *lines[2:]])
    value = said.json
    assert value["found"] == {"copy": 1} and value["would_go"] == 1 and value["rows"] == 6
    match = value["matches"][0]
    assert (match["line"], match["evaluation_row"], match["verdict"]) == (2, "test.jsonl:4", "copy")
    listed = [json.loads(text) for text in (rows / "kept.contamination.jsonl").read_text("utf-8").splitlines()]
    assert listed == value["matches"] and value["written"] == {"kept.jsonl": 5, "kept.contamination.jsonl": 1}
    question = str(evaluation()[3].messages[0]["content"])
    assert match["part"] == "prompt" and match["spans"][0][0] == 0 and match["spans"][-1][1] >= len(question) - 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--ngram", "2"), 2, "--ngram must be"),
        (("--on", "all"), 2, "--on must be"),
        (("--objective", "x"), 2, "--objective must be one of"),
        (("--map", "user"), 2, "has no `=`"),
        (("--against", "none.jsonl"), 3, "none.jsonl"),
        (("--out", "train[a].jsonl"), 2, "is a source"),
    ],
)
def test_bad_options(luthier: Caller, rows: Path, options: tuple[str, ...], code: int, words: str) -> None:
    said = luthier("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS, *options)
    assert said.code == code and words in said.err, said.err
    assert {file.name for file in rows.iterdir()} == {"train[a].jsonl", "test.jsonl"}


def test_the_evaluation_file_is_never_replaced(luthier: Caller, rows: Path) -> None:
    before = (rows / "test.jsonl").read_bytes()
    said = luthier(
        "data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS, "--out", "test.jsonl", "--force"
    )
    assert said.code == 2 and "C165" in said.err and "is a source" in said.err
    assert (rows / "test.jsonl").read_bytes() == before


def test_a_variant_that_stays_is_listed_as_one_and_shown_behind_those_that_go(luthier: Caller, rows: Path) -> None:
    file = rows / "train[a].jsonl"
    test = [json.loads(line) for line in (rows / "test.jsonl").read_text("utf-8").splitlines()]
    numbers = str.maketrans("123456789", "987654321")
    varied = {name: text.translate(numbers) for name, text in test[5].items()}
    file.write_text(file.read_text("utf-8") + json.dumps(varied) + "\n", "utf-8")
    options = ("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS)
    value = luthier(*options, "--json").json
    assert value["found"] == {"copy": 1, "variant": 1}
    assert [(one["line"], one["dropped"]) for one in value["matches"]] == [(2, True), (7, False)]
    said = luthier(*options).out
    assert 0 < said.index("surest: copy") < said.index("stays: variant") and "doubtful" not in said
    value = luthier(*options, "--variants", "--json").json
    assert [one["dropped"] for one in value["matches"]] == [True, True]


def test_an_evaluation_row_without_its_answer_is_looked_for(luthier: Caller, rows: Path) -> None:
    """Answers of test sets are often kept secret."""
    tested = [{**json.loads(line), "answer": ""} for line in (rows / "test.jsonl").read_text("utf-8").splitlines()]
    (rows / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tested), "utf-8")
    value = luthier("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS, "--json").json
    assert value["against"] == value["too_short"]["answer"] == len(evaluation())
    assert [(one["line"], one["evaluation_row"]) for one in value["matches"]] == [(2, "test.jsonl:4")]


def test_rows_that_are_not_looked_at_are_told(luthier: Caller, rows: Path) -> None:
    file = rows / "train[a].jsonl"
    file.write_text(file.read_text("utf-8") + json.dumps({"question": "Why?", "answer": ""}) + "\n", "utf-8")
    options = ("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS)
    assert "not looked at and left as they are: 1" in luthier(*options).out
    value = luthier(*options, "--json").json
    assert (value["rows"], value["not_looked_at"]) == (6, 1)


@pytest.mark.parametrize(
    "options",
    [("--embedding-model", "other"), ("--on", "prompt", "--answer", "0.7"), ("--on", "answer", "--reworded", "0.5")],
)
def test_options_without_effect_are_refused(luthier: Caller, rows: Path, options: tuple[str, ...]) -> None:
    said = luthier("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS, *options)
    assert said.code == 2 and f"C111]  {options[-2]} would have no effect" in said.err, said.err


def test_a_missing_map_is_suggested_as_the_option_that_takes_it(luthier: Caller, rows: Path) -> None:
    said = luthier("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS[:4])
    wanted = "`--against-map user=question --against-map assistant=answer`"
    assert said.code == 3 and "D210] test.jsonl" in said.err and wanted in said.err, said.err
    said = luthier("data", "decontaminate", "train[a].jsonl", "--against", "test.jsonl", *MAPS[4:])
    wanted = "`--map user=question --map assistant=answer`"
    assert said.code == 3 and "D210] train[a].jsonl" in said.err and wanted in said.err, said.err
