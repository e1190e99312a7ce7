"""Every answer that was paid for, on the disk before anything uses it.

    {"key": "ab12...", "at": "2026-01-31T12:00:00+00:00", "host": "...", "request": {...}, "answer": {...}}
    {"fact": "structured http://...", "value": "none"}

Append-only JSON Lines, flushed to the disk line by line (fsync). The key is the hash of server, request and variant, so
a journal serves whatever asks the same again, a changed spec included. A kill can tear only the last line: it is cut
off when the journal is opened. Anything else that cannot be read is damage, and an error. One process at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.endpoint.reply import BadReply, text_of
from luthier.endpoint.usage import Spent, spent_by
from luthier.runtime.atomic import explain_os_error
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem

__all__ = ["Journal", "OfHost"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Journal:
    """An open journal. Keeps answers for `Endpoint`. Safe for threads; use as a context manager.

    Args:
        path: The file; made when the first answer comes.
        now: Time of an entry, UTC, ISO 8601.

    Raises:
        DataError: a line in the middle that is no entry.
        EnvironmentProblem: another process has it open, or it cannot be read or written.
    """

    def __init__(self, path: Path, *, now: Callable[[], str] = _now) -> None:
        self.path, self._now = path, now
        self._lock = threading.Lock()
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._facts: dict[str, Any] = {}
        self._spent: dict[str, Spent] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise explain_os_error(error, path) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            message = f"another process is writing {path}"
            raise EnvironmentProblem(
                code="D270", message=message, hint="wait for it, or choose another --out"
            ) from error
        try:
            self._read()
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def close(self) -> None:
        """Let others open it; an empty one is removed."""
        if os.fstat(self._handle).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._handle)

    # -- answers

    def get(self, key: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request, or None."""
        entry = self._entry(key)
        if entry is None or entry["request"] != body:
            return None
        answer: dict[str, Any] = entry["answer"]
        return answer

    def put(self, key: str, body: dict[str, Any], answer: dict[str, Any], *, host: str = "") -> None:
        """Append an answer; it is on the disk when this returns.

        Raises:
            EnvironmentProblem: it cannot be written.
        """
        entry = {"key": key, "at": self._now(), "host": host, "request": body, "answer": answer}
        place = self._append(entry)
        with self._lock:
            self._places[key] = place
            self._count(host, body, answer)

    def at(self, key: str) -> str | None:
        """When an answer came: UTC, ISO 8601."""
        entry = self._entry(key)
        return None if entry is None else str(entry["at"])

    def spent(self, host: str) -> Spent:
        """Tokens of all answers of a server that are here."""
        return self._spent.get(host, Spent())

    # -- facts found out on the way

    def fact(self, name: str) -> Any:
        """What was found out earlier, or None."""
        return self._facts.get(name)

    def record(self, name: str, value: Any) -> None:
        """Keep what was found out, so that a resumed job decides alike."""
        self._append({"fact": name, "value": value})
        self._facts[name] = value

    # -- the file

    def _entry(self, key: str) -> dict[str, Any] | None:
        place = self._places.get(key)
        if place is None:
            return None
        value: dict[str, Any] = json.loads(os.pread(self._handle, place[1], place[0]))
        return value

    def _append(self, entry: dict[str, Any]) -> tuple[int, int]:
        data = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        with self._lock:
            start = self._end
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._handle, data[written:], start + written)
                os.fsync(self._handle)
            except OSError as error:
                raise explain_os_error(error, self.path) from error
            self._end = start + len(data)
        return start, len(data)

    def _read(self) -> None:
        """Places of all answers; a torn last line is cut off, and said."""
        start = 0
        with os.fdopen(os.dup(self._handle), "rb") as stream:
            for number, line in enumerate(stream, 1):
                fault = self._take(line, start) if line.endswith(b"\n") else "torn"
                if fault is not None and stream.read(1):
                    hint = "remove this line; its request is then asked, and paid, again"
                    problem = Problem(code="D271", message=f"no entry of a journal: {fault}", file=str(self.path),
                                      line=number, hint=hint)  # fmt: skip
                    raise DataError(problems=[problem])
                if fault is not None:
                    note(f"{self.path}: the last line was torn by a kill and is cut off ({len(line):,} bytes)")
                    os.ftruncate(self._handle, start)
                    os.fsync(self._handle)
                    break
                start += len(line)
        self._end = start

    def _take(self, line: bytes, start: int) -> str | None:
        """Note an entry; returns what is wrong with it."""
        try:
            entry = json.loads(line)
        except ValueError as error:
            return str(error)
        if isinstance(entry, dict) and isinstance(entry.get("fact"), str):
            self._facts[entry["fact"]] = entry.get("value")
            return None
        try:
            text_of(entry["answer"])
            host, request, key, _ = str(entry["host"]), dict(entry["request"]), entry["key"], entry["at"]
        except (BadReply, KeyError, TypeError, ValueError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        self._count(host, request, entry["answer"])
        self._places[key] = (start, len(line))
        return None

    def _count(self, host: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        used, before = spent_by(request, answer.get("usage")), self.spent(host)
        self._spent[host] = Spent(
            before.prompt_tokens + used.prompt_tokens, before.completion_tokens + used.completion_tokens
        )


class OfHost:
    """The answers of one server in a journal, as `Endpoint` wants them."""

    def __init__(self, journal: Journal, host: str) -> None:
        self.journal, self.host = journal, host

    def get(self, key: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """As `Journal.get`."""
        return self.journal.get(key, body)

    def put(self, key: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        """As `Journal.put`."""
        self.journal.put(key, body, answer, host=self.host)
