"""F11: compressed files are expanded within limits, by their content and not by their name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import resource
import sys
from pathlib import Path

import pyarrow
import pytest

from luthier.data import streams
from luthier.runtime.errors import EnvironmentProblem
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


def _zst(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zst}


@pytest.mark.parametrize("ending", PACKERS)
def test_every_way_to_pack_is_read_joined_files_included(tmp_path: Path, ending: str) -> None:
    pack = PACKERS[ending]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack((LINE * 2_000).encode()) + pack((LINE * 1_000).encode()))
    assert read(path).rows == 3_000
    bare = tmp_path / "renamed.jsonl"  # told by its content, not by its name
    bare.write_bytes(path.read_bytes())
    assert read(bare).hash == read(path).hash
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / path.name)
    assert read(tmp_path / "folder").rows == 3_000


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("cut", [20, -4])
def test_broken_data_of_every_kind_is_named(tmp_path: Path, ending: str, cut: int) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    rows = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(50_000))
    path.write_bytes(PACKERS[ending](rows.encode())[:cut])
    (problem,) = problems(path)
    assert (problem.code, problem.file) == ("D213", str(path)) and "broken" in problem.message
    if ending == ".zst":  # written without a checksum (the `zstd` command writes one): such a change cannot be seen
        return
    broken = bytearray(PACKERS[ending](rows.encode()))
    broken[len(broken) // 2 : len(broken) // 2 + 8] = b"\0" * 8
    path.write_bytes(bytes(broken))
    assert {problem.code for problem in problems(path)} <= {"D213", "D202", "D203", "D205"}


@pytest.mark.parametrize("ending", PACKERS)
def test_a_bomb_of_every_kind_is_refused_in_bounded_memory(tmp_path: Path, ending: str) -> None:
    """F11."""
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACKERS[ending](b"0" * (150 * 2**20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (problem, *_) = problems(path)
    assert (problem.code, "expands more than 200 times" in problem.message) == ("D213", True)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def test_an_xz_file_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * 2**20, "preset": 0}]
    path.write_bytes(lzma.compress(LINE.encode(), filters=filters))
    assert problems(path)[0].code == "D213"


def test_zstandard_without_its_package_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(_zst(LINE.encode()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match="pip install pyarrow"):
        read(path)


def test_a_plain_file_that_begins_like_bzip2_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("BZh9,a\nq1,w1\n", "utf-8")
    assert read(path, map={"user": "BZh9", "assistant": "a"}).rows == 1
