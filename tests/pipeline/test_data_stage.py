"""What the data stage depends on, where evaluation rows decide which training rows stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.pipeline.data_stage import data_depends
from luthier.pipeline.session import Session
from luthier.recipe.load import recipe_from_dict
from luthier.runs.folder import RunFolder
from tests.cli.calling import write_rows
from tests.support.tiny import conversations, save_tiny


def test_other_evaluation_rows_are_looked_for_anew(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    write_rows(tmp_path / "a.jsonl", conversations(4))
    write_rows(tmp_path / "test.jsonl", conversations(3, seed=1))
    mine = {"name": "mine", "path": str(tmp_path / "test.jsonl"), "metric": "exact"}

    def depends(action: str, *tasks: dict[str, Any]) -> Any:
        value = {
            "model": {"name_or_path": str(tmp_path / "model"), "dtype": "float32"},
            "data": {"train": [{"path": str(tmp_path / "a.jsonl")}], "decontaminate": {"action": action}},
            "evaluate": {"tasks": list(tasks)},
            "output_dir": str(tmp_path / "run"),
        }
        return data_depends(Session(recipe_from_dict(value, origin="test"), RunFolder(tmp_path / "run")))

    first = depends("drop", {**mine, "limit": 1})
    assert depends("drop", {**mine, "limit": 1}) == first
    assert depends("drop", mine) != first, "rows that were not looked for yet"
    assert depends("drop", {"name": "gsm8k"}) != depends("drop", {"name": "gsm8k", "limit": 3}), "no file of its own"
    assert depends("report", {**mine, "limit": 1}) == depends("report", mine), "nothing is dropped for them"


def test_another_list_of_rows_or_function_of_the_user_is_other_data(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    write_rows(tmp_path / "a.jsonl", conversations(4))
    listed, code = tmp_path / "rows.txt", tmp_path / "rules.py"
    filters = {"listed": {"files": [str(listed)]}, "python": [f"{code}:keep"]}
    value = {
        "model": {"name_or_path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"train": [{"path": str(tmp_path / "a.jsonl")}], "filters": filters},
        "output_dir": str(tmp_path / "run"),
    }

    def depends(line: int, reason: str) -> Any:
        listed.write_text(f"{tmp_path / 'a.jsonl'}:{line}\n")
        code.write_text(f"def keep(row):\n    return True, '{reason}'\n")
        return data_depends(Session(recipe_from_dict(value, origin="test"), RunFolder(tmp_path / "run")))

    first = depends(1, "a")
    assert depends(1, "a") == first
    assert depends(2, "a") != first, "the list names another row"
    assert depends(1, "b") != first, "the function has changed"
