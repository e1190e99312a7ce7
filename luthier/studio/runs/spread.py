"""Of a run on several processes: how it was divided, and what each process does now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.report.processes_view import ProcessFacts, process_facts
from luthier.studio.clean import clean, read_json
from luthier.studio.runs.tail import tail_lines

__all__ = ["beats_of", "processes_of"]

_EVENTS = 4 << 20
_MOST_BEATS = 64


def processes_of(folder: Path) -> ProcessFacts | None:
    """How it was divided; None for a run on one process."""
    result = read_json(folder / "stages" / "train.json").get("result")
    return process_facts(
        list(tail_lines(folder / "events.jsonl", _EVENTS))[::-1], plan=read_json(folder / "plan.json"),
        measured=read_json(folder / "measured.json"), result=result if isinstance(result, dict) else {},
    )  # fmt: skip


def beats_of(folder: Path) -> list[dict[str, Any]]:
    """What the processes of a run that goes on said last, by rank (`processes/rank-N.json`)."""
    found = [read_json(file) for file in sorted((folder / "processes").glob("rank-*.json"))[:_MOST_BEATS]]
    known = [beat for beat in found if isinstance(beat.get("rank"), int)]
    names = ("rank", "host", "operation", "step", "idle_seconds")
    return [clean({name: beat.get(name) for name in names}) for beat in sorted(known, key=lambda beat: beat["rank"])]
