"""The error of one of several processes, left where its launcher finds it.

The file is torchrun's own (`TORCHELASTIC_ERROR_FILE`), in its format, with the problems beside: so torchrun prints the
cause, and `luthier launch` prints it as one process would have. It lies in the run folder, whose disk may be what is
full: then the error is left in the system's temporary folder, under a name made of that path.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runtime.atomic import write_json
from luthier.runtime.env import read_env
from luthier.runtime.errors import LuthierError, Problem
from luthier.runtime.hashing import hash_json

__all__ = ["FOLLOW_UPS", "Failure", "leave_failure", "read_failure"]

FOLLOW_UPS = frozenset(["T462", "L141"])
"""Codes of a process that fails because another one did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a process said when it failed."""

    rank: int
    exit_code: int
    problems: tuple[Problem, ...]
    time: float
    """Seconds since the epoch."""

    @property
    def follows(self) -> bool:
        """It failed because another process did."""
        return all(problem.code in FOLLOW_UPS for problem in self.problems)


def leave_failure(error: LuthierError, *, file: Path | None = None) -> None:
    """Write the error of this process; nothing where no launcher asked for it."""
    env = read_env()
    file = file or env.error_file
    if file is None or env.world_size == 1:
        return
    now, text = time.time(), f"process {env.rank}: {error.render()}"
    value = {
        # torchrun prints the call stack under "Root Cause", so that is where the error has to be.
        "message": {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(now))}},
        "luthier": {
            "rank": env.rank, "exit_code": error.exit_code, "time": now,
            "problems": [problem.to_dict() for problem in error.problems],
        },
    }  # fmt: skip
    for place in (file, _elsewhere(file)):
        with suppress(OSError, LuthierError):
            write_json(place, value)
            return


def _elsewhere(file: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"luthier-failure-{hash_json(str(file.absolute()))}.json"


def read_failure(file: Path) -> Failure | None:
    """What `leave_failure` wrote; None if it is not there, or from another program."""
    other = _elsewhere(file)
    found = _read(file)
    with suppress(OSError):
        if other.stat().st_uid == os.getuid():  # anybody may leave a file there
            found = found or _read(other)
            other.unlink()
    return found


def _read(file: Path) -> Failure | None:
    try:
        value: dict[str, Any] = json.loads(file.read_text("utf-8"))["luthier"]
        problems = tuple(Problem(**problem) for problem in value["problems"])
        return Failure(
            rank=int(value["rank"]), exit_code=int(value["exit_code"]), problems=problems, time=float(value["time"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
