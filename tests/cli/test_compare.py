"""Contract: `luthier compare` of runs: a table for people, `--json` for programs, `--html` for both."""

import pytest

from tests.cli.calling import caller
from tests.evaluate.across.make_runs import SETTINGS, make_run
from tests.evaluate.test_compare import result


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


@pytest.fixture
def runs(tmp_path):
    scores = [1.0] * 20 + [0.0] * 10
    return [
        make_run(tmp_path / "one", scores=[0.0] * 30),
        make_run(tmp_path / "two", scores=scores, changes={"train.learning_rate": 0.5},
                 reasons={"train.learning_rate": "[bold]why"}),
        make_run(tmp_path / "three", tasks=[result(scores, settings={**SETTINGS, "template_hash": "y"})]),
    ]  # fmt: skip


def test_tables(call, runs):
    said = call("compare", *runs)
    assert said.code == 0, said
    lines = said.out.splitlines()
    assert any(line.split()[:4] == ["train.learning_rate", "0.001", "0.5", "0.001"] for line in lines)
    assert "B: [bold]why" in said.out, "text of a run is no markup"
    assert "Not tested: t, three against one, two: chat template differs ('x' and 'y')" in said.out
    (pair,) = [line for line in lines if "[+0." in line]
    assert pair.split()[:4] == ["t", "one", "two", "+0.667"] and pair.rstrip().endswith("better")
    assert any(line.split() == ["B", "A", "20"] for line in lines), "B right, A wrong"
    assert "A wrong o0.0" in said.out and "B right o1.0" in said.out


def test_many_runs_as_a_list_of_values(call, tmp_path):
    runs = [make_run(tmp_path / f"r{i}", changes={"train.seed": i // 4}) for i in range(8)]
    said = call("compare", *runs)
    assert said.code == 0 and "ABCD: 0; EFGH: 1" in said.out and "nothing to test" in said.out


def test_json_and_page(call, runs, tmp_path):
    said = call("compare", *runs, "--json", "--html", tmp_path / "page.html", "--against-first", "--rows", "1")
    assert said.code == 0, said
    assert said.json["tests"] == 1 and len(said.json["runs"]) == 3
    assert "runs side by side" in (tmp_path / "page.html").read_text("utf-8")


def test_two_files_and_one_run_as_before(call, runs):
    value = call("compare", runs[0] / "eval" / "after.json", runs[1] / "eval" / "after.json", "--json").json
    assert value["tasks"][0]["wins"] == 20
    assert call("compare", runs[0], "--json").json["tasks"][0]["delta"] == 0


def test_refused(call, runs, tmp_path):
    for option in (["--html", tmp_path / "x.html"], ["--against-first"]):
        said = call("compare", runs[0], *option)
        assert said.code == 2 and "E571" in said.err
    said = call("compare", runs[0], runs[1], tmp_path / "gone", "--json")
    assert said.code == 2 and said.json["problems"][0]["code"] == "R730"
    assert not (tmp_path / "x.html").exists()
