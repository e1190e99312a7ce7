"""Files in object stores and on web servers: listed, downloaded once into Luthier's cache, read like local ones.

    <cache>/stores/<hash of the address>/<hash of its version>/<name>   the bytes, complete or absent
                                                        .../about  address, size, version, content hash, as JSON

The version is what the store says of the object: ETag, checksum, generation, size, time of change. A new version is
downloaded anew; an unchanged one is not, and nothing is read twice. fsspec brings the file systems, which find their
keys in the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_ACCOUNT_NAME`, ...) or in `~/.config/fsspec`; keys in a path are refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.data.files import DataFile, kind_of, rows_among
from luthier.recipe.paths import is_url
from luthier.recipe.store_paths import STORE_PACKAGES, store_problem, store_scheme
from luthier.runtime.atomic import atomic_folder, sweep
from luthier.runtime.console import note, progress
from luthier.runtime.env import read_env
from luthier.runtime.errors import AccessError, DataError, EnvironmentProblem, LuthierError, Problem
from luthier.runtime.hashing import hash_file, hash_json

__all__ = ["find_store_files", "is_store"]

_VERSION_KEYS = (
    "ETag", "etag", "e_tag", "Content-MD5", "content_md5", "md5Hash", "crc32c", "Digest", "generation", "VersionId",
    "version_id", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
"""What the file systems of fsspec call the version of an object; those that are there count, with the size."""
_ABOUT = "about"
"""No name that a file of rows can have."""
_OF_THIS_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Faults of the disk that a file is downloaded to, not of the store."""
_KEPT_VERSIONS = 2
_PROGRESS_BYTES = 32 * 2**20
_BLOCK_BYTES = 1 << 22
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|CONNECTION_STRING", re.IGNORECASE)


def is_store(path: str) -> bool:
    """Whether a path is a URL, `s3://bucket/rows.jsonl` for instance."""
    return is_url(path)


def find_store_files(path: str, *, split: str = "train", notes: Counter[str]) -> list[DataFile]:
    """Files behind a URL (one object, a folder or a glob), in the cache of this machine, sorted by name.

    Raises:
        DataError: nothing there, a kind of file that holds no rows, a folder that mixes splits, a URL that is not read.
        AccessError: the store cannot be reached, or does not let us in.
        EnvironmentProblem: the package for this store is missing, or the disk is full.
    """
    wrong = store_problem(path)
    if wrong is not None:
        message, hint, shown = wrong
        place = path if shown else f"{store_scheme(path)}://..."
        raise DataError(problems=[Problem(code="D246", message=message, file=place, hint=hint)])
    system = _file_system(path)
    with _told(path):
        found = _list(system, path, split, notes)
    return [_fetch(system, name, info, shown, notes) for name, info, shown in found]


def _file_system(path: str) -> Any:
    scheme = store_scheme(path) or ""
    package = STORE_PACKAGES[scheme]
    missing = f"rows from {scheme}:// need the `{package}` package"
    try:
        import fsspec

        with _told(path):
            return fsspec.url_to_fs(path)[0]
    except ImportError as error:
        raise EnvironmentProblem(code="R720", message=missing, hint=f"pip install {package}") from error


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Whatever a file system raises, as an error that names the path and no secret."""
    try:
        yield
    except (LuthierError, ImportError):
        raise
    except Exception as error:  # each store has its own classes, without a common one
        if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
            raise  # `atomic_folder` says which disk
        reason: BaseException = error
        if isinstance(error, FileNotFoundError):
            # fsspec says "not found" of a web server that it could not reach, too; the cause tells.
            reason = error.__cause__ or error
            if isinstance(reason, FileNotFoundError) or getattr(reason, "status", None) in {404, 410}:
                raise _nothing(path) from error
        message = f"the store cannot be read: {_without_secrets(f'{type(reason).__name__}: {reason}')}"
        hint = "check the address, the network, and the keys in the environment (they are never written down)"
        raise AccessError(problems=[Problem(code="D216", message=message, file=path, hint=hint)]) from error


def _nothing(path: str) -> DataError:
    message = "no such object, or nothing below this name"
    hint = "check bucket and name; `*` stands for any name, `**` for any folders"
    return DataError(problems=[Problem(code="D200", message=message, file=path, hint=hint)])


def _without_secrets(text: str) -> str:
    """The first line of a message, with every value of a secret variable left out."""
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            line = line.replace(value, "***")
    return line[:300]


# --- listing ------------------------------------------------------------------------------------------------------


def _list(system: Any, path: str, split: str, notes: Counter[str]) -> list[tuple[str, Mapping[str, Any], str]]:
    """Name in the store, what the store says of it, and how messages call it."""
    scheme = store_scheme(path)
    root = str(system._strip_protocol(path))
    if scheme not in {"http", "https"} and re.search(r"[*?\[]", root):
        matches = system.glob(root, detail=True)
        hidden = "" if PurePosixPath(root).name.startswith(".") else "."  # as on a disk: `*` is no hidden file
        files = {
            name: info
            for name, info in matches.items()
            if info.get("type", "file") == "file" and not (hidden and PurePosixPath(name).name.startswith(hidden))
        }
        if not files:
            raise _nothing(path)
        return [_named(system, name, files[name]) for name in sorted(files)]
    info = system.info(root)
    if info.get("type", "file") == "file":
        return [_named(system, root, info)]
    files = system.find(root, detail=True)
    if not files:
        raise _nothing(path)
    base = root.rstrip("/") + "/"
    relative = {PurePosixPath(name.removeprefix(base)): name for name in sorted(files)}
    chosen = rows_among(list(relative), path, split, notes)
    return [_named(system, relative[PurePosixPath(name)], files[relative[PurePosixPath(name)]]) for name in chosen]


def _named(system: Any, name: str, info: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    shown = str(system.unstrip_protocol(name))
    kind_of(_name(shown), shown)
    return name, info, shown


def _name(shown: str) -> Path:
    """The last part of an address, without a query: a name for the file on this disk."""
    return Path(PurePosixPath(shown.split("?", 1)[0].rstrip("/")).name)


# --- the cache ----------------------------------------------------------------------------------------------------


def _fetch(system: Any, name: str, info: Mapping[str, Any], shown: str, notes: Counter[str]) -> DataFile:
    """The file, from the cache if the store still says the same of it."""
    said = {key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None}
    version = {"size": info.get("size"), **said}
    home = read_env().cache_dir / "stores" / hash_json(shown)
    folder = home / hash_json(version)
    local = folder / _name(shown)
    if said and _is_whole(folder, local):
        os.utime(folder)
        return DataFile(local, kind_of(local), shown)
    if not said:
        notes[f"`{shown}`: the server tells no version of it, so it is downloaded each time"] += 1
    with atomic_folder(folder) as temporary:
        target = temporary / local.name
        with _told(shown):
            _download(system, name, target, info.get("size"), shown)
        size = target.stat().st_size
        if info.get("size") is not None and size != info["size"]:
            message = f"the download ended after {size:,} of {info['size']:,} bytes"
            raise AccessError(problems=[Problem(code="D216", message=message, file=shown, hint="try again")])
        about = {"address": shown, "version": version, "size": size, "hash": hash_file(target)}
        (temporary / _ABOUT).write_text(json.dumps(about, indent=2), "utf-8")
    sweep(home)
    versions = sorted((path for path in home.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in versions[:-_KEPT_VERSIONS]:
        shutil.rmtree(old, ignore_errors=True)
    return DataFile(local, kind_of(local), shown)


def _is_whole(folder: Path, local: Path) -> bool:
    """Whether the file is there as it was downloaded; one that was touched since is read again to know."""
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        found, written = local.stat(), (folder / _ABOUT).stat()
    except (OSError, ValueError):
        return False
    if found.st_size != about["size"]:
        return False
    return found.st_mtime_ns <= written.st_mtime_ns or hash_file(local) == about["hash"]


def _download(system: Any, name: str, target: Path, size: int | None, shown: str) -> None:
    if size is None or size < _PROGRESS_BYTES:
        system.get_file(name, str(target))
        return
    note(f"downloading {shown} ({size / 2**20:,.0f} MiB)", style="dim")
    bar_of = progress(f"download {target.name}", size / 2**20, "MiB")
    with bar_of as bar, system.open(name, "rb") as source, target.open("wb") as out:
        while block := source.read(_BLOCK_BYTES):
            out.write(block)
            bar.advance(len(block) / 2**20)
