"""Contract: `luthier data synth` shows what it will ask, then what became of every row; and answers in JSON."""

from __future__ import annotations

import json

import pytest

from tests.cli.calling import caller
from tests.synthesis.support import DOCUMENT, Server, rows_of, spec_text


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


@pytest.fixture
def server():
    with Server() as found:
        yield found


@pytest.fixture
def spec(tmp_path, server):
    (tmp_path / "mill.md").write_text(DOCUMENT)
    file = tmp_path / "spec.yaml"
    section = {"paths": [str(tmp_path / "mill.md")], "chunk_tokens": 50, "overlap_tokens": 8, "quote_words": 3}
    file.write_text(spec_text(server.url, "documents", section, endpoint={"input_price": 1.0, "output_price": 2.0}))
    return file


def test_a_dry_run_asks_and_writes_nothing(call, spec, server, tmp_path):
    said = call("data", "synth", spec, "--dry-run", "documents.pairs=2")
    assert said.code == 0 and "passages: 5" in said.out and "requests: 5" in said.out and "Write 2 question" in said.out
    assert "at most $0.01 for them" in said.out
    value = call("data", "synth", spec, "--dry-run", "--json").json
    assert value["requests"] == [5, 5] and value["most_completion_tokens"] == 5120
    assert server.seen == [] and sorted(path.name for path in tmp_path.iterdir()) == ["mill.md", "spec.yaml"]


def test_a_run_and_the_same_again(call, spec, server, tmp_path):
    out = tmp_path / "rows.jsonl"
    said = call("data", "synth", spec, "--out", out)
    rows = rows_of(out)
    assert said.code == 0 and f"{len(rows)} rows" in said.out and f"ok: {len(rows)}  (rows written)" in said.out
    assert "accepted" in said.err and ", $0.0" in said.err, "progress shows rows and money"
    assert "6 answers asked for, 6 in the journal" in said.out
    asked = len(server.seen)
    again = call("data", "synth", spec, "--out", out, "--json")
    assert again.json["answers_new"] == 0 and again.json["outcomes"] == {"ok": len(rows)} and rows_of(out) == rows
    assert len(server.seen) == asked and json.loads(out.with_name("rows.summary.json").read_text()) == again.json


def test_rows_as_a_distiset(call, spec, tmp_path):
    datasets = pytest.importorskip("datasets")
    said = call("data", "synth", spec, "--out", tmp_path / "rows.jsonl", "--distiset", tmp_path / "set")
    assert said.code == 0
    data = datasets.load_from_disk(str(tmp_path / "set" / "default"))["train"]
    assert len(data) == len(rows_of(tmp_path / "rows.jsonl"))


def test_line_separators_in_a_text_are_no_ends_of_rows(call, spec, tmp_path):
    datasets = pytest.importorskip("datasets")
    said = call("data", "synth", spec, "--out", tmp_path / "rows.jsonl", "system=be\u2028brief\u0085please",
                "--distiset", tmp_path / "set")  # fmt: skip
    assert said.code == 0, said.err
    data = datasets.load_from_disk(str(tmp_path / "set" / "default"))["train"]
    assert data["messages"][0][0]["content"] == "be\u2028brief\u0085please"


def test_bad_use_is_one_clear_error(call, spec, tmp_path):
    assert call("data", "synth", spec).code == 2
    assert "no file to write" in call("data", "synth", spec).err
    assert "must end in .jsonl" in call("data", "synth", spec, "--out", tmp_path / "rows.csv").err
    said = call("data", "synth", spec, "--out", tmp_path / "r.jsonl", "documents.chunks=3", "--json")
    assert said.code == 2 and said.json["problems"][0]["code"] == "C102"
    assert call("data", "synth", tmp_path / "none.yaml").code == 2
    assert not (tmp_path / "r.jsonl").exists() and not list(tmp_path.glob("*.journal.jsonl"))


def test_the_schema_of_a_spec(call):
    schema = call("schema", "synth").json
    assert schema["properties"]["mode"]["enum"] == ["documents", "seeds", "evolve", "rejection"]
    assert call("schema", "poem").code == 2


def test_the_rows_it_starts_from_are_never_replaced(call, tmp_path, server):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    before = source.read_bytes()
    (tmp_path / "rows.journal.jsonl").write_text("")  # as if the rows had been made here
    file = tmp_path / "spec.yaml"
    file.write_text(spec_text(server.url, "evolve", {"source": {"path": str(source)}}))
    for more in ((), ("--force",)):
        said = call("data", "synth", file, "--out", source, *more)
        assert said.code == 2 and "C165" in said.err and "is a source" in said.err.replace("\n", " ")
    assert source.read_bytes() == before and server.seen == []
