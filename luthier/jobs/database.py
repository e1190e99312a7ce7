"""The SQLite file of the service: connections, transactions, migrations. Several processes and threads may use it.

Write-ahead logging lets readers go on beside a writer; every write is one `BEGIN IMMEDIATE` transaction, flushed to
the disk before it counts (`synchronous=FULL`), so that an accepted job survives a power cut.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["Database"]

_BUSY_MS = 30_000
_KEPT = 8
"""Idle connections that are kept open."""
_PARENTS: list[list[sqlite3.Connection]] = []
"""Connections of a process that forked this one: kept, for to forget them is to close them."""


class Database:
    """Connections to one file. A connection belongs to one borrower at a time; a forked child opens its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open, or make, the file and bring its tables up to date.

        Raises:
            EnvironmentProblem: J100 not a database, or not writable; J101 a newer Luthier wrote it.
        """
        database = cls(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = database._connect()
            try:
                _to_wal(connection)
                _migrate(connection, path)
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            message = f"cannot open {path}: {error}"
            hint = "another folder for `--home`, or a copy from a backup"
            raise EnvironmentProblem(code="J100", message=message, hint=hint) from error
        return database

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries; all of them in the block see one state."""
        connection = self._take()
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            self._give(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is written whole or, when the block raises, not at all."""
        connection = self._take()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            self._give(connection)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._pid != os.getpid():  # a connection must not cross a fork; not even to be closed
                _PARENTS.append(self._idle)
                self._pid, self._idle = os.getpid(), []
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        with self._lock:
            if len(self._idle) < _KEPT and self._pid == os.getpid():
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection


def _to_wal(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log; for this change SQLite does not wait for other processes, so we do."""
    end = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


def migrations() -> list[tuple[int, str]]:
    """Number and text of every migration, in order; numbers run from 1 without a gap."""
    folder = resources.files("luthier.jobs") / "migrations"
    found = sorted((entry.name, entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".sql"))
    numbered = [(int(name.partition("_")[0]), text) for name, text in found]
    assert [number for number, _ in numbered] == list(range(1, len(numbered) + 1)), "migrations are numbered from 1"
    return numbered


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply what is missing, each migration in a transaction of its own together with its number."""
    known = migrations()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(known):
        raise _newer(path, version, len(known))
    for number, text in known[version:]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(known):
                raise _newer(path, version, len(known))
            if version < number:
                for statement in _statements(text):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _statements(text: str) -> Iterator[str]:
    """The statements of a script, each ending with its line: `executescript` would commit the transaction it is in."""
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        yield pending


def _newer(path: Path, version: int, known: int) -> EnvironmentProblem:
    return EnvironmentProblem(
        code="J101",
        message=f"{path} was written by a newer Luthier: its tables are version {version}, this one knows {known}",
        hint="upgrade Luthier, or use another folder for `--home`",
    )
