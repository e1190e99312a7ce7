"""Score files of runs, read once and kept as long as they are as they were."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from luthier.studio.clean import read_json

__all__ = ["ScoreFiles"]

_KEPT = 12


class ScoreFiles:
    """`eval/*.json` by path; a file is read again when it changed."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, tuple[tuple[int, int], dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, file: Path) -> dict[str, Any]:
        """The content; empty where there is none."""
        try:
            status = file.stat()
        except OSError:
            return {}
        stamp = (status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._files.get(file)
            if known is not None and known[0] == stamp:
                self._files.move_to_end(file)
                return known[1]
        value = read_json(file)
        with self._lock:
            self._files[file] = (stamp, value)
            while len(self._files) > _KEPT:
                self._files.popitem(last=False)
        return value
