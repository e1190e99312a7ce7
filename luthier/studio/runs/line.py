"""One line of the list: what the files of a run say, read in about a millisecond."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import LuthierError
from luthier.studio.clean import clean, finite, read_json
from luthier.studio.runs.curve import glance
from luthier.studio.runs.tail import tail_lines
from luthier.studio.runs.times import iso

__all__ = ["FILES", "disk_line", "recipe_of", "signature"]

FILES = ("recipe.yaml", "manifest.json", "events.jsonl", "metrics.jsonl")
"""A change of a run changes one of these."""
_STAGES = ("data", "baseline", "train", "evaluate", "compare", "merge", "gguf", "push", "report")
_INTERRUPTED = 130
_FORMAT = "2"
"""Of a line: lines kept by an earlier Luthier are made again."""
_EVENTS = 256 << 10


def signature(folder: str) -> str | None:
    """Times and sizes of the files a line is made from; None: no run folder."""
    parts = []
    for name in FILES:
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116  forty thousand of them: a Path each is too slow
        except OSError:
            parts.append("")
            continue
        parts.append(f"{status.st_mtime_ns:x}.{status.st_size:x}")
    return " ".join([_FORMAT, *parts]) if parts[0] or parts[1] else None


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe as plain values: with its overrides once there is a manifest, else as written."""
    recipe = read_json(folder / "manifest.json").get("recipe")
    if isinstance(recipe, dict):
        return recipe
    try:
        value = parse_yaml((folder / "recipe.yaml").read_text("utf-8", errors="replace"), origin="recipe.yaml").value
    except (OSError, LuthierError):
        return {}
    return value if isinstance(value, dict) else {}


def disk_line(folder: Path, ident: str, name: str) -> dict[str, Any]:
    """Everything about a run that its files say; status is `finished`, `failed` or `stopped`, as if nothing ran."""
    recipe = recipe_of(folder)
    events = list(tail_lines(folder / "events.jsonl", _EVENTS))[::-1]
    stages = {stage: read_json(folder / "stages" / f"{stage}.json") for stage in _STAGES}
    line = {"id": ident, "name": name, **_recipe(recipe), **_standing(events, stages), **_scores(folder, stages)}
    line |= _training(folder, events, stages)
    line["updated_at"] = _updated(folder)
    line["job"], line["pinned"], line["tags"], line["notes"], line["actions"] = None, False, [], "", []
    cleaned: dict[str, Any] = clean(line)
    return cleaned | {"id": ident}


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    value = recipe.get(name)
    return value if isinstance(value, dict) else {}


def _recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    sources = _section(recipe, "data").get("train")
    sources = sources if isinstance(sources, list) else [sources]
    paths = [item.get("path") if isinstance(item, dict) else item for item in sources]
    title = recipe.get("name")
    return {
        "title": str(title) if title else None,
        "base": str(_section(recipe, "model").get("name_or_path") or ""),
        "method": str(_section(recipe, "method").get("name") or "lora"),
        "objective": str(_section(recipe, "objective").get("name") or "sft"),
        "data": [str(path) for path in paths if path],
    }


def _standing(events: list[dict[str, Any]], stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Status, stage and times."""
    told = [event for event in events if isinstance(event.get("event"), str)]
    last = told[-1] if told else {}
    open_stage = None
    stage = None
    for event in told:
        if event["event"] == "stage_started":
            open_stage = stage = event.get("stage")
        elif event["event"] == "stage_finished":
            open_stage, stage = None, event.get("stage")
    status, error = "stopped", None
    if last.get("event") == "failed" and last.get("exit_code") != _INTERRUPTED:
        status = "failed"
        error = {"code": str(last.get("code") or ""), "message": str(last.get("message") or "")}
    elif stages["report"] and open_stage is None and last.get("event") != "failed":
        status = "finished"
    finished = [str(record["finished_at"]) for record in stages.values() if record.get("finished_at")]
    ended = max(finished, default=None) if status == "finished" else last.get("time") if status == "failed" else None
    seconds = [float(record["seconds"]) for record in stages.values() if finite(record.get("seconds")) is not None]
    return {
        "status": status, "stage": stage, "error": error, "started_at": told[0].get("time") if told else None,
        "finished_at": ended, "seconds": sum(seconds) if seconds else None,
        "stage_started": _last_start(told) if open_stage else None,
    }  # fmt: skip


def _last_start(events: list[dict[str, Any]]) -> str | None:
    """When the stage that is open was begun."""
    return next((event.get("time") for event in reversed(events) if event["event"] == "stage_started"), None)


def _scores(folder: Path, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    compared = _tasks(stages["compare"])
    headline = score = None
    if compared:
        first = compared[0]
        headline = {
            "task": first.get("name"), "metric": first.get("metric"), "before": first.get("before"),
            "after": first.get("after"), "delta": first.get("delta"), "low": first.get("low"),
            "high": first.get("high"), "confidence": first.get("confidence"), "p": first.get("p_value"),
            "n": first.get("n"), "verdict": first.get("verdict"),
        }  # fmt: skip
    scored = _tasks(stages["evaluate"])
    if scored:
        first = scored[0]
        score = {
            "task": first.get("name"), "metric": first.get("metric"), "value": first.get("score"),
            "low": first.get("low"), "high": first.get("high"), "n": first.get("n"),
        }  # fmt: skip
    return {"headline": headline, "score": score}


def _tasks(record: dict[str, Any]) -> list[dict[str, Any]]:
    result = record.get("result")
    tasks = result.get("tasks") if isinstance(result, dict) else None
    return [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []


def _training(folder: Path, events: list[dict[str, Any]], stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    result = stages["train"].get("result")
    trained: dict[str, Any] = result if isinstance(result, dict) else {}
    seen = glance(folder / "metrics.jsonl")
    rows = seen.recent
    nothing: dict[str, Any] = {}
    started = next((event for event in reversed(events) if event.get("event") == "training_started"), nothing)
    newest = rows[0] if rows else {}
    speed = finite(trained.get("tokens_per_second"))
    return {
        "step": trained.get("steps", newest.get("step")),
        "total_steps": trained.get("total_steps", started.get("total_steps")),
        "loss": _first(rows, "loss", trained.get("final_loss")),
        "eval_loss": seen.eval_loss if seen.eval_loss is not None else finite(trained.get("eval_loss")),
        "spark": {"train": seen.train, "eval": seen.evals},
        "tokens_per_second": speed if speed is not None else finite(newest.get("tokens_per_second")),
        "peak_bytes": trained.get("peak_bytes"),
        "processes": started.get("processes", trained.get("processes")),
        "warnings": _warnings(rows),
    }


def _first(lines: list[dict[str, Any]], key: str, otherwise: Any) -> float | None:
    return next((value for line in lines if (value := finite(line.get(key))) is not None), finite(otherwise))


def _warnings(rows: list[dict[str, Any]]) -> list[str]:
    """Of the last logged steps: a gradient of nothing but zeros, or a number that is none."""
    norms = [row["grad_norm"] for row in rows if "grad_norm" in row]
    found = []
    if norms and norms[0] == 0:
        found.append("grad_norm_zero")
    if any(row.get("loss", 0.0) is None or row.get("grad_norm", 0.0) is None or _strange(row) for row in rows):
        found.append("non_finite")
    return found


def _strange(row: dict[str, Any]) -> bool:
    return any(isinstance(row.get(key), float) and finite(row[key]) is None for key in ("loss", "grad_norm"))


def _updated(folder: Path) -> str | None:
    times = []
    for name in FILES:
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return iso(max(times)) if times else None
