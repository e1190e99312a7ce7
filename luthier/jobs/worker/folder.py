"""Where the things of a job are, and who is still at work in its run folder.

HOME/jobs/ID/recipe.yaml   what `luthier run` gets; written once, so that every attempt is the same run
HOME/jobs/ID/out.json      its `--json`: the result, or what was wrong
HOME/logs/ID.log           its messages
RUNS/ID/                   the run folder, as the command line writes it
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.jobs.records import JobRecord
from luthier.recipe.emit import dump_yaml
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_text

__all__ = ["JobPlace", "end_orphan", "lock_owner"]


@dataclass(frozen=True, slots=True)
class JobPlace:
    """Paths of one job; all absolute."""

    folder: Path
    run: RunFolder
    log: Path

    @classmethod
    def of(cls, job: JobRecord, *, home: Path, runs: Path) -> JobPlace:
        """Where a job's things are. Both names come from the service, never from a client."""
        return cls(home / "jobs" / job.id, RunFolder(runs.absolute() / job.run_name), home / "logs" / f"{job.id}.log")

    @property
    def recipe(self) -> Path:
        """What `luthier run` gets."""
        return self.folder / "recipe.yaml"

    @property
    def out(self) -> Path:
        """What it prints as JSON."""
        return self.folder / "out.json"

    @property
    def exit_file(self) -> Path:
        """Exit code, where a launcher has no other way to tell it."""
        return self.folder / "exit"

    def make(self) -> None:
        """The folders, for this user alone."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Keep the recipe; complete or absent."""
        write_text(self.recipe, dump_yaml(recipe))


def lock_owner(run: RunFolder) -> int | None:
    """Process id of who works in a run folder; 0 if it does not say; None if it is free."""
    file = run.path / ".lock"
    try:
        handle = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(handle)


def end_orphan(owner: int, recipe: Path, *, hard: bool) -> bool:
    """End a run that a dead worker left, if it is one: it runs this very recipe. Returns whether it is.

    Linux only: elsewhere the command line of a process cannot be read, and nothing is ended.
    """
    try:
        arguments = Path(f"/proc/{owner}/cmdline").read_bytes().split(b"\0") if owner else []
    except OSError:
        return False
    if os.fsencode(recipe) not in arguments:
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(owner, signal.SIGKILL if hard else signal.SIGTERM)
    return True
