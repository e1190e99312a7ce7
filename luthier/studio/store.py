"""The studio's own file, `.studio/studio.db` beside the runs: what users say about runs, started processes, the index.

Nothing of it is needed to show runs: without the file (or without the right to write it) the index is in memory, and
notes are refused with the reason.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["Child", "Notes", "StudioStore"]

_VERSION = 1
_SCHEMA = """
create table if not exists notes (
  run text primary key, pinned integer not null, tags text not null, notes text not null);
create table if not exists children (
  run text primary key, pid integer not null, born text not null, command text not null,
  log text not null, wanted text not null, started real not null);
create table if not exists lines (run text primary key, signature text not null, line text not null);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a user says about a run."""

    pinned: bool = False
    tags: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A run that the studio started."""

    run: str
    pid: int
    born: str
    """Start time of the process as the system counts it: a number that is given again is another process."""
    command: tuple[str, ...]
    log: str
    wanted: str
    """`run`, or what was asked for last: `pause`, `stop`."""
    started: float
    """Seconds since 1970."""


class StudioStore:
    """The file; every method may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self._lock = threading.Lock()
        self.problem: str | None = None
        """Why nothing can be kept; None if it can."""
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._database = self._open(home / "studio.db")
        except (OSError, sqlite3.Error) as error:
            self.problem = f"{home} cannot be written: {error}"
            self._database = self._open(":memory:")

    @staticmethod
    def _open(where: Path | str) -> sqlite3.Connection:
        database = sqlite3.connect(where, check_same_thread=False, timeout=10, isolation_level=None)
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        version = database.execute("pragma user_version").fetchone()[0]
        if version not in (0, _VERSION):
            database.close()
            raise sqlite3.DatabaseError(f"it is of version {version}, this Luthier reads {_VERSION}")
        database.executescript(_SCHEMA)
        database.execute(f"pragma user_version = {_VERSION}")
        return database

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("begin immediate")
            try:
                yield self._database
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    # -- what users say

    def all_notes(self) -> dict[str, Notes]:
        """By id of the run."""
        found = self._rows("select run, pinned, tags, notes from notes")
        return {
            run: Notes(pinned=bool(pin), tags=tuple(json.loads(tags)), notes=text) for run, pin, tags, text in found
        }

    def put_notes(self, run: str, notes: Notes) -> None:
        """Keep what is said.

        Raises:
            EnvironmentProblem: W111: the folder cannot be written.
        """
        if self.problem is not None:
            raise EnvironmentProblem(code="W111", message=self.problem, hint="make the runs folder writable")
        with self._writing() as database:
            database.execute(
                "insert or replace into notes values (?, ?, ?, ?)",
                (run, int(notes.pinned), json.dumps(list(notes.tags)), notes.notes),
            )

    # -- processes

    def children(self) -> dict[str, Child]:
        """Started runs by id."""
        found = self._rows("select run, pid, born, command, log, wanted, started from children")
        return {
            run: Child(run=run, pid=pid, born=born, command=tuple(json.loads(command)), log=log, wanted=wanted,
                       started=started)
            for run, pid, born, command, log, wanted, started in found
        }  # fmt: skip

    def put_child(self, child: Child) -> None:
        """Record a started process, in place of an earlier one of this run."""
        with self._writing() as database:
            database.execute(
                "insert or replace into children values (?, ?, ?, ?, ?, ?, ?)",
                (child.run, child.pid, child.born, json.dumps(list(child.command)), child.log, child.wanted,
                 child.started or time.time()),
            )  # fmt: skip

    def want(self, run: str, wanted: str) -> None:
        """What was asked of a run; of a run from a command line, too."""
        with self._writing() as database:
            changed = database.execute("update children set wanted = ? where run = ?", (wanted, run)).rowcount
            if not changed:
                database.execute(
                    "insert into children values (?, 0, '', '[]', '', ?, ?)", (run, wanted, time.time())
                )  # fmt: skip

    # -- index

    def lines(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Run -> signature of its files, and its line."""
        found = self._rows("select run, signature, line from lines")
        return {run: (signature, json.loads(line)) for run, signature, line in found}

    def put_lines(self, lines: Iterable[tuple[str, str, dict[str, Any]]], gone: Iterable[str] = ()) -> None:
        """Keep lines, so that the next start need not read the folders again."""
        with self._writing() as database:
            database.executemany(
                "insert or replace into lines values (?, ?, ?)",
                [(run, signature, json.dumps(line)) for run, signature, line in lines],
            )
            database.executemany("delete from lines where run = ?", [(run,) for run in gone])
