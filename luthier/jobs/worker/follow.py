"""New whole lines of a log that another process writes, and may roll back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from luthier.jobs.worker.progress import Place

__all__ = ["new_lines"]

MAX_BYTES = 4 << 20
"""Read at a time."""


def new_lines(file: Path, place: Place) -> tuple[list[dict[str, Any]], Place]:
    """Lines behind a place, and the place behind them. A torn last line waits; a damaged one is passed over.

    When the file has become another one, or shorter (a run that goes on drops the lines of steps it will do again), it
    is read from its beginning: what is told twice must be known by its step.
    """
    try:
        with file.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            offset = place.offset if facts.st_ino == place.inode and facts.st_size >= place.offset else 0
            stream.seek(offset)
            block = stream.read(MAX_BYTES)
    except FileNotFoundError:
        return [], place
    whole, newline, _ = block.rpartition(b"\n")
    lines = []
    for text in whole.split(b"\n") if newline else []:
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    # A single line longer than a block would stop it for ever.
    end = len(whole) + len(newline) if newline or len(block) < MAX_BYTES else len(block)
    return lines, Place(offset=offset + end, inode=facts.st_ino)
