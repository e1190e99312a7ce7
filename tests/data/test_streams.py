"""F11: gzip is expanded within limits, by its content and not by its name."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path

import pytest

from luthier.data import streams
from tests.data.reading import CHAT, problems, read

LINE = json.dumps(CHAT) + "\n"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_packed_text_is_read_as_if_it_were_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = {"a.jsonl.gz": LINE * 3, "a.json.gz": json.dumps([CHAT] * 3), "a.csv.gz": "q,a\n1,2\n3,4\n5,6\n"}[name]
    path.write_bytes(gzip.compress(text.encode()))
    result = read(path, map={"user": "q", "assistant": "a"} if "csv" in name else {})
    assert result.rows == 3
    assert result.conversations[0].ref.file == str(path)


def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """F11: ten megabytes that would expand to ten gigabytes; here as one endless line and as many lines."""
    for block in (b"0" * 2**20, b" " * 1023 + b"\n"):
        path = tmp_path / "a.jsonl.gz"
        with gzip.open(path, "wb") as packed:
            for _ in range(300 * 2**20 // len(block)):
                packed.write(block)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (problem, *_) = problems(path)
        assert problem.code == "D213"
        assert "expands more than 200 times" in problem.message
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def test_small_files_may_pack_well(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((LINE * 20_000).encode()))
    assert read(path).rows == 20_000


def test_the_absolute_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_EXPANDED_BYTES", 1_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((LINE * 100).encode()))
    assert "expands to more than 1,000 bytes" in problems(path)[0].message


@pytest.mark.parametrize("cut", [15, 40, -4])
def test_broken_gzip_data_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": str(i)}) + "\n" for i in range(1000)).encode())[:cut])
    (problem,) = problems(path)
    assert (problem.code, problem.file) == ("D213", str(path))
    assert "broken gzip data" in problem.message
