"""Content hashes: blake2b, 128 bits, hexadecimal. The same bytes always give the same hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["Hasher", "hash_bytes", "hash_file", "hash_folder", "hash_json"]

_BLOCK_BYTES = 1 << 22


class Hasher:
    """`hash_bytes` of pieces that come one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, data: bytes) -> None:
        """Add a piece."""
        self._digest.update(data)

    def hash(self) -> str:
        """Hash of the pieces so far, end to end."""
        return self._digest.hexdigest()


def hash_bytes(data: bytes) -> str:
    """Hash of a byte string."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_json(value: Any) -> str:
    """Hash of a JSON value: keys sorted, no white space."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))


def hash_file(path: Path) -> str:
    """Hash of a file's bytes, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_folder(path: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """Hash over names and contents of the files directly in `path` that match a pattern."""
    names = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    return hash_json([[file.name, hash_file(file)] for file in names])
