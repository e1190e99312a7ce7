"""Rows in object stores: listed, downloaded once for each version, and no credential is ever repeated."""

from __future__ import annotations

import errno
import gzip
import http.server
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from luthier.data import stores
from luthier.data.prepare import prepare
from luthier.data.sources import hash_source
from luthier.data.stores import find_store_files
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.errors import AccessError, DataError, EnvironmentProblem
from tests.data.reading import read
from tests.support.tiny import conversations, tiny_tokenizer


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def text(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that are downloaded from now on."""
    seen: list[str] = []
    real = stores._download

    def spy(system: Any, name: str, *rest: Any) -> None:
        seen.append(name)
        real(system, name, *rest)

    monkeypatch.setattr(stores, "_download", spy)
    return seen


def test_a_file_a_folder_and_a_glob_give_their_rows(store: Any) -> None:
    store.pipe({"/b/rows/a.jsonl": text(conversations(3)), "/b/rows/deep/b.jsonl.gz": gzip.compress(text(
        conversations(2, seed=1))), "/b/rows/.hidden.jsonl": b"{", "/b/rows/README.md": b"x",
        "/b/rows/dataset_info.json": b"{}"})  # fmt: skip
    one = read("memory://b/rows/a.jsonl")
    assert (one.rows, one.conversations[0].ref.file) == (3, "memory:///b/rows/a.jsonl")
    folder = read("memory://b/rows")
    assert (folder.rows, folder.notes) == (5, ("2 files of other kinds in the folder not read",))
    assert read("memory://b/rows/*.jsonl").rows == 3
    assert read("memory://b/**/*.gz").rows == 2
    assert folder.hash == hash_of_same_rows(store)


def hash_of_same_rows(store: Any) -> str:
    store.pipe("/other/x.jsonl", text([*conversations(3), *conversations(2, seed=1)]))
    return read("memory://other/x.jsonl").hash


def test_an_object_is_downloaded_once_and_again_when_it_changes(
    store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = downloads(monkeypatch)
    store.pipe("/b/a.jsonl", text(conversations(3)))
    first = hash_source("memory://b/a.jsonl")
    assert hash_source("memory://b/a.jsonl") == first and read("memory://b/a.jsonl").rows == 3
    assert len(seen) == 1
    store.pipe("/b/a.jsonl", text(conversations(4)))
    assert hash_source("memory://b/a.jsonl") != first and len(seen) == 2
    for count in (5, 6, 7):
        store.pipe("/b/a.jsonl", text(conversations(count)))
        assert read("memory://b/a.jsonl").rows == count
    (home,) = (tmp_path / "cache" / "stores").iterdir()
    assert len(list(home.iterdir())) == 2  # older versions are let go
    about = json.loads(next(home.glob("*/about")).read_text("utf-8"))
    assert about["address"] == "memory:///b/a.jsonl" and len(about["hash"]) == 32


def test_a_damaged_copy_is_downloaded_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = downloads(monkeypatch)
    store.pipe("/b/a.jsonl", text(conversations(3)))
    (file,) = find_store_files("memory://b/a.jsonl", notes=Counter())
    good = file.path.read_bytes()
    file.path.write_bytes(good.replace(b"a", b"b"))  # as long as before
    os.utime(file.path, (2e9, 2e9))
    assert find_store_files("memory://b/a.jsonl", notes=Counter())[0].path.read_bytes() == good
    file.path.write_bytes(good[:-5])
    assert find_store_files("memory://b/a.jsonl", notes=Counter())[0].path.read_bytes() == good
    assert len(seen) == 3


def test_a_broken_download_leaves_nothing(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store.pipe("/b/a.jsonl", text(conversations(3)))
    monkeypatch.setattr(stores, "_download", lambda system, name, target, *rest: target.write_bytes(b"half"))
    with pytest.raises(AccessError, match=r"D216.*ended after 4 of"):
        read("memory://b/a.jsonl")
    assert not list((tmp_path / "cache").rglob("a.jsonl"))


def test_a_full_disk_is_no_fault_of_the_store(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(system: Any, name: str, target: Path, *rest: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.pipe("/b/a.jsonl", text(conversations(3)))
    monkeypatch.setattr(stores, "_download", full)
    with pytest.raises(EnvironmentProblem, match=r"R710.*No space left on device"):
        read("memory://b/a.jsonl")


def test_a_file_of_rows_may_have_any_name(store: Any) -> None:
    store.pipe("/b/about.json", json.dumps(conversations(3)).encode())
    assert read("memory://b/about.json").rows == read("memory://b/about.json").rows == 3


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("memory://b/gone.jsonl", "no such object"),
        ("memory://b/*.csv", "no such object"),
        ("memory://b/a.pdf", "unknown kind of file"),
        ("memory://mixed", "several splits: test, train"),
        ("memory://b/pdfs", "no file of a known kind"),
    ],
)
def test_what_is_not_there_is_told(store: Any, path: str, says: str) -> None:
    store.pipe({"/b/a.pdf": b"x", "/mixed/train.jsonl": b"{}", "/mixed/test.jsonl": b"{}", "/b/pdfs/x.pdf": b"x"})
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert (caught.value.problems[0].code, caught.value.problems[0].file.split("://")[0]) == ("D200", "memory")


@pytest.mark.parametrize(
    ("path", "package"),
    [("s3://b/a.jsonl", "s3fs"), ("gs://b/a.jsonl", "gcsfs"), ("abfs://c@a.dfs.core.windows.net/a.jsonl", "adlfs")],
)
def test_a_missing_package_is_one_error_with_the_pip_line(
    path: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.hint) == ("R720", f"pip install {package}") and package in problem.message


def test_urls_with_credentials_are_refused_without_repeating_them() -> None:
    for path in ("s3://KEYHUNTER2:hunter2@b/a.jsonl", "https://x.org/a.jsonl?token=hunter2"):
        with pytest.raises(DataError) as caught:
            read(path)
        assert "hunter2" not in str(caught.value).lower() and caught.value.problems[0].code == "D246"


def test_what_a_store_says_of_our_keys_is_not_repeated(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")

    def refuse(name: str) -> Any:
        raise PermissionError("the key hunter2hunter2 may not\nread this")

    monkeypatch.setattr(store, "info", refuse)
    with pytest.raises(AccessError) as caught:
        read("memory://b/a.jsonl")
    assert "the key *** may not" in str(caught.value) and "hunter2" not in str(caught.value)


def test_stores_train_and_validate(store: Any) -> None:
    store.pipe({"/b/a.jsonl": text(conversations(12)), "/b/v/x.jsonl": text(conversations(4, seed=5))})
    section = DataSection(
        train=[Source(path="memory://b/a.jsonl")], validation={"path": "memory://b/v/*"}, max_length=128
    )
    manifest = prepare(section, tiny_tokenizer(), seed=0).manifest
    assert (manifest["rows_used"], manifest["validation_rows"]) == (12, 4)
    assert [source["path"] for source in manifest["sources"]] == ["memory://b/a.jsonl", "memory://b/v/*"]


class _Server(http.server.SimpleHTTPRequestHandler):
    gets = 0

    def do_GET(self) -> None:
        type(self).gets += 1
        super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


def test_a_web_server_is_asked_for_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.jsonl").write_bytes(text(conversations(3)))
    monkeypatch.chdir(tmp_path / "www")
    _Server.gets = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl?download=1"
        assert read(url).rows == 3 and read(url).rows == 3
        assert _Server.gets == 1
        with pytest.raises(DataError, match="no such object"):
            read(url.replace("a.jsonl", "gone.jsonl"))
        server.shutdown()
    with pytest.raises(AccessError, match="cannot be read"):
        read(url)
