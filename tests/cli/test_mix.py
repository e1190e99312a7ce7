"""Contract: `luthier data mix` says what each source gives, and `--out` writes the rows of an epoch, or nothing."""

import json

import pytest

from tests.cli.calling import caller, make_world, write_recipe
from tests.support.tiny import conversations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("mix"))
    for name, rows in (("a", conversations(60)), ("b", conversations(50, seed=4))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(folder / f"{name}.jsonl"), "share": share} for name, share in (("a", 0.25), ("b", 0.75))]
    write_recipe(folder / "recipe.yaml", folder, data={"train": sources, "max_length": 128, "mix": {"by": "rows"}})
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


def test_the_table_and_its_json_say_wanted_and_achieved(world, call):
    said = call("data", "mix", world / "recipe.yaml")
    assert said.code == 0 and "shares of rows, first_exhausted" in said.out and "25.00%" in said.out
    value = call("data", "mix", world / "recipe.yaml", "--json").json
    assert [source["share"] for source in value["sources"]] == [0.25, 0.75] and value["warnings"] == []
    assert [source["rows"] for source in value["sources"]] == [17, 50]
    check = call("data", "check", world / "recipe.yaml").out.replace("\n", " ")
    assert "wanted 75.0% of rows; got" in check
    assert not (world / "run").exists()


def test_the_rows_that_are_written_are_those_that_would_be_trained(world, call, tmp_path):
    out = tmp_path / "mixed.jsonl"
    value = call("data", "mix", world / "recipe.yaml", "data.mix={by: rows, size: 160}", "--out", out, "--json").json
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert value["written"] == {str(out): 160} and len(rows) == 160 == value["rows"]
    known = [json.loads(line) for name in "ab" for line in (world / f"{name}.jsonl").read_text().splitlines()]
    assert all(row in known for row in rows) and all(rows.count(row) in (1, 2, 3) for row in rows)
    again = call("data", "mix", world / "recipe.yaml", "--out", out)
    assert again.code == 2 and "--force replaces it" in again.err
    built_in = "evaluate.tasks=[{name: 'builtin:forgetting'}]"  # a task without a file of its own
    assert call("data", "mix", world / "recipe.yaml", built_in, "--out", out, "--force").code == 0
    assert len(out.read_text().splitlines()) == 67


@pytest.mark.parametrize(
    ("overrides", "out", "says"),
    [
        (["data.streaming=true"], "x.jsonl", "data.streaming=false"),
        ([], "x.csv", "must end in .jsonl"),
        (["data.train.0.share=0.3"], "x.jsonl", "these add up to 1.05"),
        (["data.mix={by: rows, size: 1}"], "x.jsonl", "less than half of a row"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(world, call, tmp_path, overrides, out, says):
    said = call("data", "mix", world / "recipe.yaml", *overrides, "--out", tmp_path / out)
    assert said.code in (2, 3) and says in said.err.replace("\n", " ")
    assert not (tmp_path / out).exists()


def test_a_source_is_never_replaced(world, call):
    before = (world / "a.jsonl").read_bytes()
    said = call("data", "mix", world / "recipe.yaml", "--out", world / "a.jsonl", "--force")
    assert said.code == 2 and "C165" in said.err and "is a source" in said.err
    task = f"name: own, metric: exact, path: {world / 'b.jsonl'}, num_fewshot: 1, fewshot_path: {world / 'shots.jsonl'}"
    (world / "shots.jsonl").write_bytes(before)
    said = call(
        "data", "mix", world / "recipe.yaml", f"evaluate.tasks=[{{{task}}}]", "--out", world / "shots.jsonl", "--force"
    )
    assert said.code == 2 and "C165" in said.err
    assert (world / "a.jsonl").read_bytes() == (world / "shots.jsonl").read_bytes() == before
