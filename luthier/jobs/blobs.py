"""Bytes on the disk: complete under their id, or absent. A name from a request never becomes a path."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import unquote

from luthier.jobs.errors import Invalid, TooLarge
from luthier.runtime.atomic import TEMP_PREFIX, explain_os_error, fsync_path

__all__ = ["BlobWriter", "blob_path", "check_filename", "chunks_of"]

CHUNK = 1 << 20
_ID = re.compile(r"(?:file-|part_)[0-9a-f]{24}")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_MAX_NAME_BYTES = 255


class BlobWriter:
    """Writes beside the target and renames when all is there; leaving the block without `commit` removes it."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.bytes = 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=folder)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        self._stream, self._temporary = os.fdopen(handle, "wb"), Path(name)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            TooLarge: J105 more than `max_bytes` in all.
            EnvironmentProblem: R710 disk full.
        """
        self.bytes += len(chunk)
        if self.bytes > self.max_bytes:
            raise TooLarge(code="J105", message=f"the file is larger than {self.max_bytes:,} bytes", param="file")
        self._sha256.update(chunk)
        self._md5.update(chunk)
        try:
            self._stream.write(chunk)
        except OSError as error:
            raise explain_os_error(error, self._temporary) from error

    def commit(self, id_: str, suffix: str = "") -> Path:
        """Flush to the disk and give it its name."""
        target = blob_path(self.folder, id_, suffix)
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._temporary.replace(target)
            fsync_path(self.folder)
        except OSError as error:
            raise explain_os_error(error, target) from error
        return target

    @property
    def sha256(self) -> str:
        """Of what was written, in hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Of what was written, in hexadecimal."""
        return self._md5.hexdigest()


def blob_path(folder: Path, id_: str, suffix: str = "") -> Path:
    """Where the blob of an id lies. Only ids that this program makes have one."""
    if not _ID.fullmatch(id_):
        raise ValueError(f"no id of a blob: {id_!r}")
    return folder / (id_ + suffix)


def chunks_of(source: Path | BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a file, a stream or an iterable, a piece at a time."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            yield from iter(lambda: stream.read(CHUNK), b"")
    elif hasattr(source, "read"):
        yield from iter(lambda: source.read(CHUNK), b"")
    else:
        yield from source


def check_filename(name: str, *, param: str = "file") -> str:
    """A client's file name, if it is a plain one; it is kept and shown, and never used as a path.

    Raises:
        Invalid: J106 a folder in it (also percent-encoded), `.` or `..`, control characters, a device name of
            Windows, empty, or more than 255 bytes.
    """
    why = next((why for form in (name, unquote(name)) if (why := _bad_name(form))), None)
    if why:
        message = f"the file name {name[:80]!r} {why}"
        raise Invalid(code="J106", message=message, param=param, hint="a plain name, for instance train.jsonl")
    return name


def _bad_name(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if any(mark in name for mark in "/\\"):
        return "has a folder in it"
    if name.strip(" .") == "":
        return "is no name"
    if any(not letter.isprintable() for letter in name):
        return "has control or unprintable characters"
    if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    if _DEVICE.fullmatch(name):
        return "is a device name"
    return None
