"""Data sets of the hub: the files of a split, as their author wrote them. Nothing here reaches the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from luthier.data.hub import find_hub_files
from luthier.runtime.errors import DataError
from tests.data.reading import CHAT, write

pytest.importorskip("datasets")


def test_the_files_of_one_split_are_found(tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", [CHAT])
    write(tmp_path / "train-1.jsonl", [CHAT])
    write(tmp_path / "test.jsonl", [CHAT])
    files = find_hub_files(str(tmp_path), name=None, split="train", notes=Counter())
    assert [(file.path.name, file.kind) for file in files] == [("train-0.jsonl", "jsonl"), ("train-1.jsonl", "jsonl")]
    assert files[0].shown == f"{tmp_path}/train-0.jsonl"
    with pytest.raises(DataError, match="no split `dev`; it has: train, test"):
        find_hub_files(str(tmp_path), name=None, split="dev", notes=Counter())


def test_configurations_are_chosen_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [CHAT])
    write(tmp_path / "b.jsonl", [CHAT])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (file,) = find_hub_files(str(tmp_path), name="b", split="train", notes=Counter())
    assert file.path.name == "b.jsonl"
    for name in (None, "c"):
        with pytest.raises(DataError, match=r"config|Config") as caught:
            find_hub_files(str(tmp_path), name=name, split="train", notes=Counter())
        assert caught.value.problems[0].hint == "set `name` to one of its configurations"


def test_options_that_change_how_files_are_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("q;a\n1;2\n")
    (tmp_path / "README.md").write_text('---\nconfigs:\n- config_name: a\n  data_files: train.csv\n  sep: ";"\n---\n')
    with pytest.raises(DataError, match="option sep=';'"):
        find_hub_files(str(tmp_path), name=None, split="train", notes=Counter())


def test_files_without_rows_of_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file"):
        find_hub_files(str(tmp_path), name=None, split="train", notes=Counter())


READ = """
import sys
from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import LuthierError
try:
    result = read_conversations(Source(path=sys.argv[1]), 0)
    print(result.conversations[0].ref, result.conversations[0].messages[1]["content"], result.notes)
except LuthierError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


def _offline(cache: Path, path: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: the hub library reads the environment once, when it is imported.
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(cache),
        "HF_HOME": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, "-c", READ, path], env=env, capture_output=True, text=True, timeout=120)


def test_offline_the_local_cache_is_used_and_said_so_and_dates_stay_text(tmp_path: Path) -> None:
    """B56: the loader of `datasets` would make a timestamp of this answer."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "datasets--owner--dates"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    row = {"messages": [{"role": "user", "content": "when"}, {"role": "assistant", "content": "2024-01-01"}]}
    (repository / "snapshots" / commit / "train.jsonl").write_text(json.dumps(row) + "\n")
    done = _offline(tmp_path, "owner/dates")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("owner/dates/train.jsonl:1 2024-01-01 ")
    assert "taken from the local cache, commit 0123456789ab" in done.stdout


def test_offline_without_a_cached_copy_is_an_access_error_with_the_fix(tmp_path: Path) -> None:
    done = _offline(tmp_path, "owner/nothing")
    assert done.returncode == 6
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in done.stdout
    assert "hf download" in done.stdout
