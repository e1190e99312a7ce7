"""`api.yaml`: every key known, everything wrong told at once; and the database's versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from luthier.jobs.database import Database, migrations
from luthier.jobs.settings import ApiSettings, load_settings
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from tests.jobs.making import add_file, open_store

WHOLE = """
version: 1
organization: acme
models:
  gpt-4o-mini-2024-07-18: smollm2-135m-instruct
  gpt-4.1-mini: Qwen/Qwen3-0.6B
  mine: base
recipe:
  method: {r: 32}
recipe_of_base:
  Qwen/Qwen3-0.6B: {data: {max_length: 8192}, method: {name: qlora}}
priority: {ann: 5}
integrations: [wandb]
allow: {endpoints: true}
limits: {min_rows: 1, max_queued: null, requests_per_minute: 60}
"""


def load(tmp_path: Path, text: str) -> ApiSettings:
    (tmp_path / "api.yaml").write_text(text)
    return load_settings(tmp_path / "api.yaml", ApiSettings)


def test_defaults_and_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert load_settings(None, ApiSettings) == ApiSettings() == load(tmp_path, "# nothing\n")
    found = load(tmp_path, WHOLE.replace("mine: base", "mine: ./base"))
    assert found.models["mine"] == str(tmp_path / "base")
    assert found.base_recipe("Qwen/Qwen3-0.6B") == {
        "data": {"max_length": 8192, "overlong": "error"}, "export": {"merge": False},
        "method": {"name": "qlora", "r": 32},
    }  # fmt: skip
    assert found.base_recipe("other")["data"]["max_length"] == 4096
    assert found.limits.max_queued is None and found.allow.endpoints and not found.allow.code


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("modles: {a: b}", 1, "unknown key"),
        ("models: [a]", 1, "must be"),
        ("models: {a: 3}", 1, "must be"),
        ("models: {'ft:a': b/c}", 1, "no name for a model"),
        ("models: {a: ./nowhere}", 1, "no such folder"),
        ("version: 2", 1, "must be 1"),
        ("limits:\n  min_rows: 0", 2, "must be"),
        ("limits:\n  min_row: 1", 2, "unknown key"),
        ("allow: {all: true}", 1, "unknown key"),
        ("organization: 'a:b'", 1, "must be"),
        ("integrations: [mlflow]", 1, "must be"),
        ("recipe: {method: {rank: 3}}", 1, "unknown key"),
        ("recipe: {train: {learning_rate: fast}}", 1, "learning_rate"),
        ("recipe: {output_dir: x}", 1, "each job brings itself"),
        ("recipe: {data: {train: [{path: x}]}}", 1, "each job brings itself"),
        ("recipe_of_base: {b/c: {}}", 1, "no base of `models`"),
        ("models: {a: b/c}\nrecipe_of_base: {b/c: {method: {name: full, r: 3}}}", 2, "no effect"),
        ("priority: {ann: high}", 1, "must be"),
        ("- a", None, "mapping"),
        ("models: {a: b/c\n", 2, ""),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert any(words in problem.message for problem in caught.value.problems), caught.value
    if line is not None:
        assert line in {problem.line for problem in caught.value.problems}


def test_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "modles: {}\nlimits: {min_rows: 0}\nallow: {x: 1}\n")
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]
    with pytest.raises(RecipeError, match="no such file"):
        load_settings(tmp_path / "none.yaml", ApiSettings)


# -- the database


def test_migrations_are_applied_in_order_and_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    file = add_file(store)
    store.close()
    again = open_store(tmp_path)
    assert again.file(file).id == file
    version = sqlite3.connect(tmp_path / "service.db").execute("PRAGMA user_version").fetchone()[0]
    assert version == len(migrations()) >= 1


def test_a_newer_database_is_refused_by_name(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "service.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(EnvironmentProblem, match=r"service\.db was written by a newer Luthier.*version 999") as caught:
        open_store(tmp_path)
    assert caught.value.problems[0].code == "J101" and caught.value.exit_code == 4


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_text("hello " * 1_000)
    with pytest.raises(EnvironmentProblem, match="cannot open") as caught:
        open_store(tmp_path)
    assert caught.value.problems[0].code == "J100"
    (tmp_path / "x").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot open"):
        open_store(tmp_path / "x" / "home")


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier.jobs.database as module

    good = migrations()
    broken = [*good, (len(good) + 1, "CREATE TABLE extra (a);\nCREATE TABLE files (a);")]
    open_store(tmp_path).close()
    monkeypatch.setattr(module, "migrations", lambda: broken)
    with pytest.raises(EnvironmentProblem, match="already exists"):
        open_store(tmp_path)
    monkeypatch.setattr(module, "migrations", lambda: good)
    open_store(tmp_path).close()
    tables = sqlite3.connect(tmp_path / "service.db").execute("SELECT name FROM sqlite_master").fetchall()
    assert ("extra",) not in tables


def test_a_block_that_raises_writes_nothing(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "service.db")
    with pytest.raises(RuntimeError), database.writing() as connection:
        connection.execute("INSERT INTO owners VALUES ('a', 1)")
        raise RuntimeError
    with database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM owners").fetchone()[0] == 0
