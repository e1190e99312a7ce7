"""A run as it goes: a snapshot, then what is new. Each event has an id from which a reconnect goes on.

The id is the places in the three logs (`tail.Place`), so the server remembers nothing about a client: after a
reconnect, or after a restart of the server, the stream goes on with the next line, none twice and none left out. When
a log was rewritten (a resumed run rolls back) the next event is a snapshot that replaces everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.studio.runs.index import Index
from luthier.studio.runs.logs import event_record, metric_record, read_all, sample_record, thin
from luthier.studio.runs.spread import beats_of
from luthier.studio.runs.system import System
from luthier.studio.runs.tail import Place, read_from

__all__ = ["Event", "RunStream", "list_stream"]

_LOGS: dict[str, tuple[str, str, Callable[[int, dict[str, Any]], dict[str, Any]]]] = {
    "metrics": ("metrics.jsonl", "rows", metric_record),
    "events": ("events.jsonl", "events", event_record),
    "samples": ("samples.jsonl", "samples", sample_record),
}
_POINTS = 2_000
_EVENTS, _SAMPLES = 200, 20
_SYSTEM_SECONDS = 5.0
_LINE_SECONDS = 1.0

Event = tuple[str, dict[str, Any] | None, str | None]
"""(name, data, id); no data: only to show that the connection lives."""


@dataclass(slots=True)
class RunStream:
    """What one page has seen of one run."""

    index: Index
    system: System
    ident: str
    folder: Path
    silence: float = 15.0
    """Seconds after which a comment is sent."""
    places: dict[str, Place] = field(default_factory=dict)
    _line: dict[str, Any] = field(default_factory=dict)

    def begin(self, last_id: str | None) -> bool:
        """Take up an id of an earlier connection; false if it is none (then a snapshot comes first)."""
        parts = (last_id or "").split(".")
        places = [Place.parse(part) for part in parts]
        if len(parts) != len(_LOGS) or any(place is None for place in places):
            return False
        self.places = {name: place for name, place in zip(_LOGS, places, strict=True) if place is not None}
        return True

    @property
    def last_id(self) -> str:
        """The id of all that was sent."""
        return ".".join(str(self.places.get(name, Place())) for name in _LOGS)

    async def events(self) -> AsyncIterator[Event]:
        """Without end; the caller stops when its client is gone."""
        if not self.places:
            yield await asyncio.to_thread(self.snapshot)
        told = measured = looked = time.monotonic()
        while True:
            found: list[Event] = []
            if self._changed():
                found = await asyncio.to_thread(self.news)
            now = time.monotonic()
            if found or now - looked >= _LINE_SECONDS:
                looked = now
                found += await asyncio.to_thread(self.line_news)
            if now - measured >= _SYSTEM_SECONDS and self._line.get("status") in ("running", "stopping"):
                measured = now
                found.append(("system", await asyncio.to_thread(self._now), None))
            for event in found:
                told = now
                yield event
            if now - told >= self.silence:
                told = now
                yield "", None, None
            await asyncio.sleep(self.index.settings.poll_seconds)

    def _changed(self) -> bool:
        """Three looks at the file system; a stream in which nothing happens costs nothing else."""
        for name, (file, _, _) in _LOGS.items():
            place = self.places.get(name, Place())
            try:
                status = (self.folder / file).stat()
            except OSError:
                if place.inode:
                    return True
                continue
            if status.st_ino != place.inode or status.st_size != place.offset:
                return True
        return False

    def _now(self) -> dict[str, Any]:
        """The machine, and what each of several processes does."""
        going = self._line.get("status") in ("running", "stopping")
        return {**self.system.now(), "processes": beats_of(self.folder) if going else []}

    def snapshot(self) -> Event:
        """Everything, and the places it reaches to."""
        from luthier.studio.runs.details import stages_of

        logs: dict[str, list[dict[str, Any]]] = {}
        for name, (file, _, record) in _LOGS.items():
            found, place = read_all(self.folder / file)
            self.places[name] = place
            logs[name] = [record(line, value) for line, value in found]
        rows, thinned = thin(logs["metrics"], _POINTS)
        self._line = self.index.one(self.ident)
        data = {
            "run": self._line, "stages": stages_of(self.folder, self._line),
            "metrics": {"rows": rows, "total": len(logs["metrics"]), "thinned": thinned},
            "events": logs["events"][-_EVENTS:], "samples": logs["samples"][-_SAMPLES:], "system": self._now(),
        }  # fmt: skip
        return "snapshot", data, self.last_id

    def news(self) -> list[Event]:
        """Lines since the last time; a snapshot where a log was rewritten."""
        found: list[Event] = []
        for name, (file, key, record) in _LOGS.items():
            read = read_from(self.folder / file, self.places.get(name, Place()))
            if read is None:
                return [*found, self.snapshot()]
            lines, place = read
            self.places[name] = place
            if lines:
                found.append((name, {key: [record(line, value) for line, value in lines]}, self.last_id))
        return found

    def line_news(self) -> list[Event]:
        """The line of the run, if it changed in more than its clock."""
        from luthier.studio.runs.details import stages_of

        line = self.index.one(self.ident)
        before = {**self._line, "seconds": None}
        if before == {**line, "seconds": None}:
            return []
        self._line = line
        return [("run", {"run": line, "stages": stages_of(self.folder, line)}, None)]


async def list_stream(index: Index, *, silence: float = 15.0) -> AsyncIterator[Event]:
    """Lines of the list as they change."""
    version, seen = -1, {known.line["id"]: known.line for known in index.lines()}
    told = time.monotonic()
    while True:
        await asyncio.to_thread(index.refresh)
        now = time.monotonic()
        if index.version != version:
            version = index.version
            lines = {known.line["id"]: known.line for known in index.lines()}
            changed = [line for ident, line in lines.items() if seen.get(ident) is not line and seen.get(ident) != line]
            gone = [ident for ident in seen if ident not in lines]
            seen = lines
            if changed or gone:
                told = now
                yield "runs", {"changed": changed, "gone": gone}, None
        if now - told >= silence:
            told = now
            yield "", None, None
        await asyncio.sleep(max(1.0, index.settings.poll_seconds))
