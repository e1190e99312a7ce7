"""The logs of a run as a page shows them: metrics, events, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.studio.clean import clean, finite
from luthier.studio.runs.tail import Place, read_from

__all__ = ["event_record", "metric_record", "read_all", "sample_record", "thin"]

_WARN = {
    "checkpoint_refused",
    "resumed_with_other_versions",
    "interrupted",
    "checkpoints_removed",
    "micro_batch_halved",
}
_SENTENCES = {
    "stage_started": "{stage} began ({reason})",
    "stage_finished": "{stage} is done in {seconds:.1f} s",
    "training_started": "training goes from step {step} to {total_steps}",
    "checkpoint_saved": "checkpoint of step {step} is saved",
    "training_finished": "training ended at step {step}: {stopped}",
    "interrupted": "stopped at step {step}; a checkpoint is saved",
    "failed": "{message}",
    "checkpoint_refused": "the checkpoint of step {step} cannot be used",
    "checkpoints_removed": "older checkpoints were removed: {reason}",
    "checkpoint_removed": "the checkpoint of step {step} was removed: {reason}",
    "resumed_with_other_versions": "goes on with other versions of its libraries",
    "resumed_on_other_processes": "goes on on {now} processes; it was {was}",
    "calibrated": "the plan was corrected by measured steps",
}


def metric_record(line: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with its number."""
    record: dict[str, Any] = clean({**value, "line": line})
    return record


def event_record(line: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """A line of events.jsonl as a sentence with its fields."""
    kind = str(value.get("event") or "")
    fields = {key: item for key, item in value.items() if key not in ("time", "event")}
    level = "error" if kind == "failed" else "warn" if kind in _WARN else "info"
    try:
        text = _SENTENCES[kind].format(**fields)
        if kind == "training_started" and "processes" in fields:
            text += " on {processes} processes ({strategy})".format(**fields)
    except (KeyError, IndexError, ValueError, TypeError):
        text = f"{kind.replace('_', ' ')}: " + ", ".join(f"{key} {item}" for key, item in fields.items())
    record: dict[str, Any] = clean(
        {"n": line, "time": value.get("time"), "event": kind, "level": level, "text": text, "fields": fields}
    )
    return record


def sample_record(line: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """A line of samples.jsonl."""
    completions = value.get("completions")
    record: dict[str, Any] = clean(
        {
            "n": line, "step": value.get("step"), "row": str(value.get("row") or ""),
            "prompt": _text(value.get("prompt")),
            "reference": None if value.get("reference") is None else _text(value["reference"]),
            "completions": [
                {"text": str(item.get("text") or ""), "rewards": dict(item.get("rewards") or {})}
                for item in (completions if isinstance(completions, list) else [])
                if isinstance(item, dict)
            ],
        }
    )  # fmt: skip
    return record


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value if isinstance(turn, dict))
    return "" if value is None else str(value)


def read_all(file: Path, place: Place | None = None) -> tuple[list[tuple[int, dict[str, Any]]], Place]:
    """Every object from a place on (or from the start, if the place is in a file that is no more)."""
    found: list[tuple[int, dict[str, Any]]] = []
    place = place or Place()
    while True:
        read = read_from(file, place)
        if read is None:
            found, place = [], Place()
            continue
        lines, after = read
        found += lines
        if after.offset == place.offset:
            return found, after
        place = after


def thin(rows: Sequence[dict[str, Any]], points: int) -> tuple[list[dict[str, Any]], bool]:
    """At most about `points` rows: every validation, first and last (also the last of training), and of each stretch of
    steps the rows of least and greatest loss: no peak is lost. Returns the rows and whether any was left out."""
    if len(rows) <= points:
        return list(rows), False
    newest = next((place for place in reversed(range(len(rows))) if not _is_validation(rows[place])), 0)
    keep = {0, newest, len(rows) - 1} | {place for place, row in enumerate(rows) if _is_validation(row)}
    rest = [place for place in range(len(rows)) if place not in keep]
    buckets = max(1, (points - min(len(keep), points // 2)) // 2)
    for bucket in range(buckets):
        own = rest[bucket * len(rest) // buckets : (bucket + 1) * len(rest) // buckets]
        ranked = [(value, place) for place in own if (value := _height(rows[place])) is not None]
        keep |= {min(ranked)[1], max(ranked)[1]} if ranked else set(own[:1])
    return [rows[place] for place in sorted(keep)], True


def _height(row: Mapping[str, Any]) -> float | None:
    loss = finite(row.get("loss"))
    return loss if loss is not None else finite(row.get("reward"))


def _is_validation(row: Mapping[str, Any]) -> bool:
    return any(key.startswith("eval_") for key in row)
