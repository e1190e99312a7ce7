"""Files and folders that are complete or absent.

A file is written beside its target, flushed to the disk and renamed over it. A folder is
written under a temporary name beside its target and renamed when everything in it is on
the disk. Whatever is left by a killed writer starts with `.tmp-` and is removed by `sweep`.
A folder is locked (flock) while it is written, so a sweep passes over what another process is
writing: caches are shared by runs that go on at the same time.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["TEMP_PREFIX", "atomic_folder", "explain_os_error", "sweep", "write_bytes", "write_json", "write_text"]

TEMP_PREFIX = ".tmp-"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        EnvironmentProblem: disk full, folder read-only, and the like; names disk and file.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise explain_os_error(error, path) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    All files are made readable for everyone and flushed to the disk before the rename. An existing `path` is replaced.
    On an error nothing is left behind and `path` is as it was.

    Raises:
        EnvironmentProblem: the disk or its permissions do not allow it.
    """
    temporary: Path | None = None
    handle = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=path.parent))
        handle = os.open(temporary, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.chmod(temporary, 0o755)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():  # a library may have made it for its owner alone, and servers run as others
                os.chmod(file, 0o644)
            fsync_path(file)
        fsync_path(temporary)
        _swap(temporary, path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        if handle >= 0:
            os.close(handle)
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; an old `path` steps aside first and is deleted last."""
    old: Path | None = None
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=path.parent)) / path.name
        os.replace(path, old)
    os.replace(temporary, path)
    fsync_path(path.parent)
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)


def sweep(folder: Path) -> list[Path]:
    """Remove what killed writers left directly in `folder`, not what is being written; returns what was removed."""
    removed = []
    if folder.is_dir():
        for leftover in folder.glob(TEMP_PREFIX + "*"):
            if leftover.is_dir():
                if _written_now(leftover):
                    continue
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
            removed.append(leftover)
    return removed


def _written_now(folder: Path) -> bool:
    """A process that lives has its lock."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explain_os_error(error: OSError, path: Path) -> EnvironmentProblem:
    """Turn an operating-system error into one that names the file, the disk and the fix."""
    hints = {
        errno.ENOSPC: "free some space, or choose another `output_dir`",
        errno.EDQUOT: "your disk quota is used up: free some space, or choose another `output_dir`",
        errno.EFBIG: "the file-size limit of this shell (`ulimit -f`) is too small",
        errno.EROFS: "the file system is read-only: choose another `output_dir`",
        errno.EACCES: "you may not write there: choose another `output_dir`, or change its permissions",
        errno.EPERM: "you may not write there: choose another `output_dir`, or change its permissions",
        errno.ENOTDIR: "a part of this path is a file: choose another path",
    }
    free = ""
    probe = next((parent for parent in [path, *path.parents] if parent.exists()), None)
    if error.errno == errno.ENOSPC and probe is not None:
        free = f" ({shutil.disk_usage(probe).free / 2**20:.0f} MiB free on its disk)"
    return EnvironmentProblem(
        code="R710",
        message=f"cannot write {path}: {error.strerror or error}{free}",
        hint=hints.get(error.errno or 0),
    )
