"""One run as a whole."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report.read import printable
from luthier.runtime.errors import RecipeError
from luthier.runtime.scrub import scrub
from luthier.studio.clean import clean, finite, read_json
from luthier.studio.data.summary import run_summary
from luthier.studio.runs.actions import launched
from luthier.studio.runs.line import recipe_of
from luthier.studio.runs.resolved import resolved_values
from luthier.studio.runs.spread import processes_of
from luthier.studio.runs.times import iso

__all__ = ["base_name", "details", "model_names", "plan_record", "stages_of"]

_MOST_FILES = 500
_UNMEASURED = ("checkpoints", "merged", "stages")


def details(folder: Path, line: Mapping[str, Any], *, runs: Path) -> dict[str, Any]:
    """Everything but the logs."""
    manifest = read_json(folder / "manifest.json")
    measured, plan = read_json(folder / "measured.json"), read_json(folder / "plan.json")
    resolved = _text(folder / "resolved.yaml")
    path = folder.relative_to(runs).as_posix() if folder != runs else "."
    shown = Path(runs.name) / path
    facts = processes_of(folder)
    command = f"luthier {shlex.join(_command(folder, str(shown / 'recipe.yaml')))}"
    names = ("peak_bytes", "seconds_per_step", "tokens_per_second", "seconds_to_first_step", "mfu")
    return {
        "run": line, "folder": str(shown), "command": printable(command),
        "started_with": [scrub(str(word)) for word in clean(manifest.get("command") or [])],
        "stages": stages_of(folder, line),
        "recipe": _text(folder / "recipe.yaml") or "", "resolved_text": resolved,
        "resolved": resolved_values(resolved) if resolved else [],
        "plan": plan_record(plan), "processes": clean(facts.to_json()) if facts else None,
        "measured": _numbers(measured, names), "predicted": _numbers(measured.get("predicted"), names),
        "manifest": {
            "versions": clean(manifest.get("versions") or {}), "hardware": clean(manifest.get("hardware") or {}),
            "code": clean(manifest.get("code") or {}), "seed": manifest.get("seed"),
            "base": clean(manifest.get("base")), "working_directory": _last_part(manifest.get("working_directory")),
        },
        "data": run_summary(folder), "checkpoints": checkpoints(folder),
        "models": model_names(folder, line), "children": None, "files": _files(folder),
        "report": f"/studio/api/runs/{line['id']}/report" if (folder / "report.html").is_file() else None,
    }  # fmt: skip


def _command(folder: Path, recipe: str) -> list[str]:
    try:
        return launched(folder, recipe)
    except RecipeError:  # several machines: the command of one is not that of the run
        return ["launch", recipe]


def _numbers(value: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """Those of a record, as far as they are numbers; None without a record."""
    return {name: finite(value.get(name)) for name in names} if isinstance(value, dict) and value else None


def stages_of(folder: Path, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that the recipe asks for, in order."""
    found = []
    for name, title in _wanted(folder):
        record = read_json(folder / "stages" / f"{name}.json")
        state = "done" if record else "waiting"
        if name == line["stage"] and not record:
            status = line["status"]
            state = "running" if status in ("running", "stopping") else "failed" if status == "failed" else "stopped"
        found.append({
            "name": name, "title": title, "state": state, "seconds": finite(record.get("seconds")),
            "finished_at": record.get("finished_at"), "result": clean(_short(record.get("result"))) if record else None,
        })  # fmt: skip
    return found


def _short(result: Any) -> Any:
    """A result without its long lists (names of trained weights)."""
    if isinstance(result, dict):
        return {key: _short(item) for key, item in result.items() if not (isinstance(item, list) and len(item) > 50)}
    return result


def _wanted(folder: Path) -> list[tuple[str, str]]:
    from pydantic import ValidationError

    from luthier.pipeline.stages import STAGES
    from luthier.recipe.schema import Recipe

    try:
        recipe = Recipe.model_validate(recipe_of(folder))
    except ValidationError:
        return [(stage.name, stage.title) for stage in STAGES if (folder / "stages" / f"{stage.name}.json").is_file()]
    return [(stage.name, stage.title) for stage in STAGES if stage.wanted(recipe)]


def plan_record(plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """`plan.json` (or `Plan.to_json()`) as the page shows it."""
    if not plan or "memory" not in plan:
        return None
    memory = dict(plan["memory"])
    has, needs = finite(memory.get("device")), finite(memory.get("total"))
    memory["free"] = None if has is None or needs is None else max(0, int(has - needs))
    value: dict[str, Any] = clean({**plan, "memory": memory})
    return {key: item for key, item in value.items() if key not in ("fingerprint", "decision", "predicted")}


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Checkpoints by step. `model` is the name they can be asked by; null: not as they are."""
    found = []
    for path in sorted((folder / "checkpoints").glob("step-*")):
        step = path.name.removeprefix("step-")
        if step.isdigit() and path.is_dir():
            when = iso(path.stat().st_mtime)
            found.append({"step": int(step), "bytes": _bytes(path), "saved_at": when, "model": None})
    return sorted(found, key=lambda item: item["step"])


def model_names(folder: Path, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What of a run can be asked, by the names that the server gives it."""
    name = str(line["name"])
    found = [{"label": "base", "model": base_name(str(line["base"]))}] if line["base"] else []
    if (folder / "final").is_dir():
        found.append({"label": "tuned", "model": name})
    if (folder / "merged" / "config.json").is_file():
        found.append({"label": "merged", "model": f"{name}:merged"})
    return found


def base_name(text: str) -> str:
    """What a base is called by the server: the last part of its path or id."""
    return text.rstrip("/").rpartition("/")[2] or text


def _files(folder: Path) -> list[dict[str, Any]]:
    """Files of the run, without those of checkpoints and of the merged model."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _UNMEASURED)
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(where) / name
            try:
                size = path.stat().st_size
            except OSError:
                continue
            found.append({"name": printable(path.relative_to(folder).as_posix()), "bytes": size})
            if len(found) >= _MOST_FILES:
                return found
    return found


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total


def _last_part(text: Any) -> str | None:
    """Of a path of the machine only its last part goes to a page."""
    return Path(text).name if isinstance(text, str) and text else None


def _text(file: Path) -> str | None:
    try:
        return printable(file.read_text("utf-8", errors="replace"))
    except OSError:
        return None
