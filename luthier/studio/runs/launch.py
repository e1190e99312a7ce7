"""Start runs as processes of their own: they outlive the studio, and a shell sees no word of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.report.read import printable
from luthier.runtime.atomic import explain_os_error
from luthier.studio.runs.processes import alive, born
from luthier.studio.settings import StudioSettings
from luthier.studio.store import Child, StudioStore

__all__ = ["failure_of", "start_process"]

_ERROR = re.compile(r"^error\[([A-Z][0-9]{3})\]\s*(.*)$", re.MULTILINE)
_LOG_END = 16 << 10


def start_process(
    settings: StudioSettings, store: StudioStore, ident: str, arguments: Sequence[str], *, folder: Path
) -> Child:  # fmt: skip
    """Run `luthier ARGUMENTS` in `folder`, and record it.

    Args:
        settings: How luthier is started.
        store: Where the process is recorded.
        ident: Id of the run it writes.
        arguments: As on a command line; handed on as a list.
        folder: Where relative paths start.

    Raises:
        EnvironmentProblem: the log cannot be written, or the program cannot be started.
    """
    logs = settings.home / "logs"
    log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^A-Za-z0-9._-]', '_', ident)[:100]}.log"
    command = [*settings.program, *arguments]
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True, close_fds=True, env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
    except OSError as error:
        raise explain_os_error(error, log) from error
    _REAP.append(process)
    child = Child(run=ident, pid=process.pid, born=born(process.pid), command=tuple(command), log=str(log),
                  wanted="run", started=time.time())  # fmt: skip
    store.put_child(child)
    return child


_REAP: list[subprocess.Popen[bytes]] = []
"""Processes that this studio started: asking for their end lets the system forget them."""


def reap() -> None:
    """Collect what has ended; a process that nobody collects stays in the table."""
    _REAP[:] = [process for process in _REAP if process.poll() is None]


def failure_of(child: Child) -> dict[str, Any] | None:
    """Why a started process ended before there was a run folder: the first error in its log; None while it goes on."""
    reap()
    if child.pid <= 0 or (alive(child.pid) and born(child.pid) == child.born):
        return None
    try:
        with Path(child.log).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOG_END))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return {"code": "W122", "message": "it ended without a word: its log is gone"}
    for line in text.splitlines():
        if line.startswith("{") and (error := _as_json(line)) is not None:
            return error
    found = _ERROR.search(text)
    if found:
        return {"code": found.group(1), "message": printable(found.group(2).strip())}
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "it ended without a word")
    return {"code": "W122", "message": printable(last.strip()[:500])}


def _as_json(line: str) -> dict[str, Any] | None:
    try:
        problems = json.loads(line)["error"]["problems"]
        return {"code": str(problems[0]["code"]), "message": printable(str(problems[0]["message"]))}
    except (ValueError, KeyError, IndexError, TypeError):
        return None
