"""Contract: the plans in docs/distributed.md are what the plan says, and what the commands beside them print."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper = load("paper")
ROWS = [(name, row) for name, rows in paper.ROWS.items() for row in rows]


def test_the_page_has_the_tables():
    text = (ROOT / "docs" / "distributed.md").read_text("utf-8")
    for name, table in paper.paper_tables().items():
        assert table in text, f"{name}: run `python docs/generate.py`"


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{place}" for place, (name, _) in enumerate(ROWS)])
def test_the_command_says_the_same(name, row, monkeypatch, tmp_path):
    """Through the command line, words as they stand there; a row that a run still refuses (L110, L112) says so."""
    from luthier.cli.main import app

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    words = row.command().split()
    assert words[0] == "luthier"
    done = CliRunner().invoke(app, [*words[1:], "--json"])
    plan = row.plan()
    if done.exit_code:
        codes = {problem.code for problem in getattr(done.exception, "problems", [])}
        assert codes and codes <= {"L110", "L112"}, done.output
        pytest.skip(f"not built: {', '.join(sorted(codes))}")
    value = json.loads(done.stdout)
    assert (value["fits"], value["memory"]["total"]) == (plan.fits, plan.chosen.needed_bytes)
    assert value["time"]["tokens_per_second"] == pytest.approx(plan.chosen.tokens_per_second)
    assert value["host"]["total"] == plan.host.total
    assert value["time"]["seconds"] == pytest.approx(plan.seconds)


def test_rows_that_matter_are_there():
    by_name = {name: [row.words for row in rows] for name, rows in paper.ROWS.items()}
    models = " ".join(by_name["models"])
    assert "70B" in models and "405B" in models and "offload=all" in models and "--num-gpus 512" in models
    assert any("1048576" in words and "size=8" in words for words in by_name["contexts"])
    assert any("L4" in words for words in by_name["published"])
