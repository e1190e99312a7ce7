"""All runs below a folder, kept up to date by looking at times and sizes of four files of each.

A line is made again only when one of them changed. Lines are kept in the studio's file, so that the next start reads
the folders of new runs only. The first look at many runs goes on in the background; pages show what is known so far.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.runtime.errors import RecipeError
from luthier.studio.names import run_folder, run_id
from luthier.studio.runs.line import disk_line, signature
from luthier.studio.runs.overlay import overlaid, waiting_line
from luthier.studio.runs.processes import held_locks, holder
from luthier.studio.settings import StudioSettings
from luthier.studio.store import StudioStore

__all__ = ["Index", "Known"]

_DEPTH = 2
"""Levels below the runs folder: searches keep their short runs in folders of their own."""
_BATCH = 200
_DAMAGED_SHOWN = 20


@dataclass(slots=True)
class Known:
    """One run as last seen."""

    folder: Path
    signature: str
    disk: dict[str, Any]
    line: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    """Lower case, what a search looks at."""
    pid: int | None = None


class Index:
    """The runs; every method may be called from any thread."""

    def __init__(self, settings: StudioSettings, store: StudioStore, jobs: Any | None = None) -> None:
        self.settings, self.store, self.jobs = settings, store, jobs
        self._known: dict[str, Known] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._scanning = threading.Lock()
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None
        self._scanned_at = 0.0
        self._cost = 0.0
        self._complete = False
        self.damaged: list[dict[str, str]] = []
        """Folders that cannot be shown, and why."""
        self.version = 0
        """Raised by every look that changed a line."""
        self._sorted: tuple[int, list[Known]] = (-1, [])
        self.orders: dict[tuple[Any, ...], tuple[int, list[dict[str, Any]], dict[str, int], list[str]]] = {}
        """Answers of `listing`, good for the version they were made for."""

    # -- looking

    def refresh(self, *, wait: float = 0.0) -> bool:
        """Look again if the last look is old; false while the first one goes on.

        A look runs in a thread of its own and takes no more than a tenth of the time; `wait` is how many seconds the
        caller has for it.
        """
        due = time.monotonic() - self._scanned_at > max(self.settings.scan_seconds, 10 * self._cost)
        with self._started:
            if (self._thread is None or not self._thread.is_alive()) and due:
                self._thread = threading.Thread(target=self.scan, name="studio-scan", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(wait)
        return self._complete

    def scan(self) -> None:
        """Look at all folders now."""
        with self._scanning:
            started = time.monotonic()
            if not self._known:
                self._recall()
            locks, children, notes, jobs = held_locks(), self.store.children(), self.store.all_notes(), self._jobs()
            seen: set[str] = set()
            fresh: list[tuple[str, str, dict[str, Any]]] = []
            damaged: list[dict[str, str]] = []
            for folder, name, now in self._folders(damaged):
                ident = run_id(name) if name else "."
                seen.add(ident)
                known = self._known.get(ident)
                if known is None or known.signature != now:
                    known = Known(folder, now, disk_line(folder, ident, name or folder.name))
                    fresh.append((ident, now, known.disk))
                known.pid = holder(folder, locks)
                self._show(ident, known, children.get(ident), notes.get(ident), jobs.get(ident))
                if len(fresh) >= _BATCH:
                    self.store.put_lines(fresh)
                    fresh = []
            gone = [ident for ident in self._known if ident not in seen]
            for ident in gone:
                del self._known[ident]
            self.store.put_lines(fresh, gone)
            self._wait_for(jobs, seen, notes)
            self.damaged = damaged[:_DAMAGED_SHOWN]
            if gone:
                self.version += 1
            self._complete = True
            self._scanned_at = time.monotonic()
            self._cost = self._scanned_at - started

    def _recall(self) -> None:
        """Lines of an earlier start."""
        for ident, (stamp, line) in self.store.lines().items():
            try:
                folder = run_folder(self.settings.runs, ident)
            except RecipeError:
                continue
            self._known[ident] = Known(folder, stamp, line)

    def _jobs(self) -> dict[str, Any]:
        return {} if self.jobs is None else self.jobs.by_run()

    def _wait_for(self, jobs: dict[str, Any], seen: set[str], notes: dict[str, Any]) -> None:
        """Jobs that have no folder yet, or never had one."""
        lines = {
            ident: overlaid(waiting_line(job, ident), pid=None, child=None, notes=notes.get(ident), job=job)
            for ident, job in jobs.items()
            if ident not in seen
        }
        if lines != self._waiting:
            self._waiting = lines
            self.version += 1

    def _show(self, ident: str, known: Known, child: Any, notes: Any, job: Any) -> None:
        line = overlaid(known.disk, pid=known.pid, child=child, notes=notes, job=job)
        if line != known.line or ident not in self._known:
            known.line, known.words = line, _words(line)
            self._known[ident] = known
            self.version += 1

    def _folders(self, damaged: list[dict[str, str]]) -> Iterator[tuple[Path, str, str]]:
        """(folder, name, signature) of each run."""
        root = str(self.settings.runs)
        own = signature(root)
        if own is not None:
            yield self.settings.runs, "", own
        todo = [("", 0)]
        while todo:
            prefix, depth = todo.pop()
            try:
                entries = sorted(os.scandir(f"{root}/{prefix}"), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                if entry.name.startswith(".") or not _is_folder(entry):
                    continue
                name = f"{prefix}{entry.name}"
                now = signature(entry.path)
                if now is None:
                    todo += [(f"{name}/", depth + 1)] if depth + 1 < _DEPTH else []
                elif not name.isprintable() or "\\" in name:
                    why = "its name has characters that cannot be shown"
                    damaged.append({"name": ascii(name)[1:-1], "message": why})
                else:
                    yield Path(entry.path), name, now

    # -- asking

    def lines(self) -> list[Known]:
        """All runs as last seen, by name; the same list as long as nothing changes."""
        version, known = self._sorted
        if version != self.version:
            version = self.version
            known = sorted(self._all(), key=lambda one: one.line["name"])
            self._sorted = version, known
        return known

    def _all(self) -> list[Known]:
        waiting = [
            Known(self.settings.runs / ident, "", line, line, _words(line)) for ident, line in self._waiting.items()
        ]
        return [*self._known.copy().values(), *waiting]

    def one(self, ident: str) -> dict[str, Any]:
        """The line of a run, as it is at this moment.

        Raises:
            RecipeError: W104.
        """
        jobs = self._jobs()
        child, notes = self.store.children().get(ident), self.store.all_notes().get(ident)
        try:
            folder = run_folder(self.settings.runs, ident)
        except RecipeError:
            if ident in jobs:
                return overlaid(waiting_line(jobs[ident], ident), pid=None, child=None, notes=notes, job=jobs[ident])
            raise
        now = signature(str(folder)) or ""
        known = self._known.get(ident)
        if known is None or known.signature != now:
            name = folder.relative_to(self.settings.runs).as_posix() if ident != "." else folder.name
            known = Known(folder, now, disk_line(folder, ident, name))
        known.pid = holder(folder, held_locks())
        self._show(ident, known, child, notes, jobs.get(ident))
        return known.line

    def close(self) -> None:
        """Let a look that goes on come to its end; a new one cannot begin."""
        with self._started:
            thread, self._thread = self._thread, threading.current_thread()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def pid(self, ident: str) -> int | None:
        """The process that holds the folder of a run now."""
        return holder(run_folder(self.settings.runs, ident), held_locks())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _words(line: dict[str, Any]) -> str:
    parts = [line["name"], line["title"] or "", line["base"], *line["data"], line["method"], line["objective"]]
    return "\n".join([*parts, *line["tags"], line["notes"], line["job"] or ""]).lower()
