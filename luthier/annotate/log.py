"""The log of decisions: JSON Lines, only ever appended to, each entry on the disk before it is acknowledged.

A writer that is killed leaves at most a last line without its end; it is taken off, with a message, by the next one.
Several processes may write to one log: each appends under a lock and first reads what the others wrote. A log in which
nothing was written is taken away when it is closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.annotate.record import Record, record_from, record_line
from luthier.data.strict_json import JsonError, parse
from luthier.runtime.atomic import explain_os_error, fsync_path
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem

__all__ = ["Log", "read_log"]


def read_log(path: Path) -> tuple[list[Record], list[str]]:
    """All entries of a log, and what is to be told of it; nothing is changed, a missing log is empty.

    Raises:
        DataError: lines that are no entries; all are told.
        EnvironmentProblem: it cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise _explain(error, path) from error
    whole = _whole(data)
    told = (
        [f"{path}: the last line has no end ({len(data) - whole} bytes), so it is no entry"]
        if whole < len(data)
        else []
    )
    return _records(data[:whole], path, first_line=1), told


class Log:
    """A log open for appending."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin it.

        Raises:
            DataError: lines that are no entries; all are told.
            EnvironmentProblem: it cannot be written.
        """
        self.path = path
        self.records: list[Record] = []
        """All entries, those of other processes too, as of the last call."""
        self.told: list[str] = []
        """What was repaired."""
        self._seen = 0
        self._lines = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise _explain(error, path) from error
        self.refresh()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> list[Record]:
        """Read what other processes appended; returns it. Mends a last line that has no end."""
        with self._locked():
            return self._refresh()

    def append(self, record: Record) -> list[Record]:
        """Write one entry; when this returns it is on the disk.

        Returns:
            Entries that others wrote since the last call, then this one.

        Raises:
            EnvironmentProblem: the disk is full, and the like; the log is as it was.
        """
        line = record_line(record)
        with self._locked():
            new = self._refresh()
            try:
                if os.write(self._file, line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._seen)
                raise
            self._seen += len(line)
            self._lines += 1
            self.records.append(record)
        return [*new, record]

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        try:
            with self._locked():
                if os.fstat(self._file).st_size == 0:
                    self.path.unlink(missing_ok=True)
        finally:
            os.close(self._file)

    def _open(self) -> int:
        new = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if new:
            fsync_path(self.path.parent)
        return file

    def _refresh(self) -> list[Record]:
        size = os.fstat(self._file).st_size
        if size < self._seen:
            message = "the log became shorter while it was open; something else writes to it"
            raise DataError(problems=[Problem(code="D290", message=message, file=str(self.path))])
        data = os.pread(self._file, size - self._seen, self._seen)
        whole = _whole(data)
        if whole < len(data):
            os.ftruncate(self._file, self._seen + whole)
            os.fsync(self._file)
            self.told.append(
                f"{self.path}: the last entry was cut off ({len(data) - whole} bytes: the writer was stopped in the "
                "middle) and is taken off; that one decision is to be made again"
            )
        new = _records(data[:whole], self.path, first_line=self._lines + 1)
        self._seen += whole
        self._lines += data.count(b"\n", 0, whole)
        self.records += new
        return new

    def _open_again(self) -> None:
        """The file was removed: by another process that closed it empty, or with entries in it by somebody."""
        if self._seen:
            message = "the log was removed while it was open, with entries in it"
            hint = f"put it back, or start again: {len(self.records):,} entries were in it"
            raise DataError(problems=[Problem(code="D290", message=message, file=str(self.path), hint=hint)])
        before, self._file = self._file, self._open()
        os.close(before)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            while os.fstat(self._file).st_nlink == 0:
                self._open_again()
                fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise _explain(error, self.path) from error


def _whole(data: bytes) -> int:
    """Bytes up to the end of the last whole entry. After a loss of power, zeros may stand where data should."""
    end = data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(0, end - 1)) + 1
    return last if b"\0" in data[last:end] else end


def _records(data: bytes, path: Path, *, first_line: int) -> list[Record]:
    records: list[Record] = []
    problems: list[Problem] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=first_line):
        try:
            records.append(record_from(parse(line.decode("utf-8"))))
        except (JsonError, ValueError) as error:
            hint = "take the line out, or choose another --log"
            message = f"no entry of a log of labels: {getattr(error, 'message', error)}"
            problems.append(Problem(code="D290", message=message, file=str(path), line=number, hint=hint))
    if problems:
        raise DataError(problems=problems)
    return records


def _explain(error: OSError, path: Path) -> EnvironmentProblem:
    told = explain_os_error(error, path).problems[0]
    return EnvironmentProblem(code="D291", message=told.message, hint="`--log FILE` puts the log elsewhere")
