"""Compressed files: which kind one is, told by its first bytes, and its decompressor.

gzip, bzip2 and xz are read by the standard library, Zstandard by `pyarrow` (which `datasets` brings along).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["MAGIC_BYTES", "Packed", "packed_as"]

MAGIC_BYTES = 10
"""First bytes that tell the kinds apart."""
_XZ_MEMORY = 256 * 2**20
"""Most memory for the dictionary of an xz file; `xz -9` asks for 65 MiB."""
_READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Packed:
    """One way to compress."""

    name: str
    magic: bytes
    """Pattern of the first bytes."""
    open: Callable[[IO[bytes]], Any]
    """Decompressor with `read(n)` over an open file."""
    faults: tuple[type[Exception], ...]
    """What it raises on broken data."""


class _Xz:
    """xz in bounded memory: `lzma.LZMAFile` takes no limit, and a file may ask for gigabytes."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decoder = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0") or self._raw.read(_READ_BYTES).lstrip(b"\0")
                if not rest:
                    return b""
                self._decoder = self._new()  # files may be joined end to end, as with gzip
                data = rest
            elif self._decoder.needs_input:
                data = self._raw.read(_READ_BYTES)
                if not data:
                    raise EOFError("it ends before its end-of-stream marker was reached")
            if expanded := self._decoder.decompress(data, size):
                return expanded


def _zstd(raw: IO[bytes]) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        message = "files compressed with Zstandard (.zst) need the `pyarrow` package"
        raise EnvironmentProblem(code="R720", message=message, hint="pip install pyarrow; or unpack them") from error
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")


_KINDS = (
    Packed(
        "gzip",
        rb"\x1f\x8b",
        lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
        (EOFError, gzip.BadGzipFile, zlib.error),
    ),
    Packed("bzip2", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", lambda raw: bz2.BZ2File(raw), (EOFError, OSError, ValueError)),
    Packed("xz", rb"\xfd7zXZ\x00", _Xz, (EOFError, lzma.LZMAError)),
    Packed("zstd", rb"\x28\xb5\x2f\xfd", _zstd, (EOFError, OSError)),
)


def packed_as(start: bytes) -> Packed | None:
    """The kind of compression that a file with these first bytes has; None: none that is known."""
    return next((kind for kind in _KINDS if re.match(kind.magic, start)), None)
