"""Lines of a file that grows, read from where one stopped. A line counts once its line feed is there.

A place is `inode-offset-line`. Luthier appends to its logs, and rewrites them in one step when a resumed run rolls
back: the new file has another inode, so a place in the old one is never taken for one in the new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Place", "read_from", "tail_lines"]

_AT_ONCE = 8 << 20
"""Bytes read in one go; the rest follows at the next look."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading stopped."""

    inode: int = 0
    """0: there was no file."""
    offset: int = 0
    line: int = 0
    """Lines before this place."""

    def __str__(self) -> str:
        return f"{self.inode:x}-{self.offset:x}-{self.line:x}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """The other way; None for anything else."""
        parts = text.split("-")
        if len(parts) != 3 or len(text) > 60:
            return None
        try:
            inode, offset, line = (int(part, 16) for part in parts)
        except ValueError:
            return None
        return cls(inode, offset, line) if min(inode, offset, line) >= 0 else None


def read_from(file: Path, place: Place) -> tuple[list[tuple[int, dict[str, Any]]], Place] | None:
    """Objects after a place with their line numbers (from 0), and the place after them.

    A line that is no JSON object is counted and left out. None: the place is in a file that is no more, or was cut.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None if place.inode else ([], place)
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if place.inode == 0:
            place = Place(status.st_ino, 0, 0)
        if status.st_ino != place.inode or status.st_size < place.offset:
            return None
        stream.seek(place.offset)
        data = stream.read(_AT_ONCE)
        while data and b"\n" not in data and (more := stream.read(_AT_ONCE)):  # one line longer than that
            data += more
    end = data.rfind(b"\n") + 1
    found, line = [], place.line
    for text in data[:end].split(b"\n")[:-1]:
        if (value := parsed(text)) is not None:
            found.append((line, value))
        line += 1
    return found, Place(place.inode, place.offset + end, line)


def parsed(text: bytes) -> dict[str, Any] | None:
    """A line as an object."""
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def tail_lines(file: Path, most_bytes: int = 64 << 10) -> Iterator[dict[str, Any]]:
    """Objects at the end of a file, the last first; of a long file only its end."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - most_bytes))
            data = stream.read()
    except OSError:
        return
    lines = data.split(b"\n")
    if len(data) < size:
        lines = lines[1:]  # the first one is cut
    for text in reversed(lines):
        if (value := parsed(text)) is not None:
            yield value
