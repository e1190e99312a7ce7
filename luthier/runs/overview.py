"""Run folders as records: for `luthier runs`, and for any page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.runs.folder import RunFolder
from luthier.runs.manifest import read_manifest
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError, RunFailed

__all__ = ["describe_run", "find_runs", "require_run"]

STAGE_ORDER = ("data", "baseline", "train", "evaluate", "compare", "merge", "gguf", "push", "report")


def find_runs(root: Path) -> list[dict[str, Any]]:
    """Overviews of the run folders at most two levels below `root`, newest first."""
    folders = {
        file.parent
        for pattern in ("manifest.json", "*/manifest.json", "*/*/manifest.json")
        for file in root.glob(pattern)
    }
    runs = []
    for folder in folders:
        try:
            runs += [_overview(folder)] if (folder / "recipe.yaml").is_file() else []
        except RunFailed as error:  # one damaged run must not hide the others
            note(f"left out: {error.problems[0].message}", style="yellow")
    return sorted(runs, key=lambda run: str(run["finished"]), reverse=True)


def describe_run(folder: Path) -> dict[str, Any]:
    """One run: overview, stages in order, manifest.

    Raises:
        RecipeError: `folder` is no run folder.
    """
    run = require_run(folder)
    records = {name: run.stage(name) for name in STAGE_ORDER}
    stages = {
        name: {"seconds": record.seconds, "finished_at": record.finished_at, "result": record.result}
        for name, record in records.items()
        if record is not None
    }
    return {**_overview(folder), "stages": stages, "manifest": read_manifest(folder)}


def require_run(folder: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        RecipeError: `folder` is no run folder.
    """
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(
            code="R730",
            message=f"{folder} is no run folder (it has no recipe.yaml)",
            hint="`luthier runs ls` lists them",
        )
    return RunFolder(folder)


def _overview(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    manifest = read_manifest(folder)
    recipe = manifest.get("recipe", {})
    train = run.stage("train")
    compare = run.stage("compare")
    finished = [record.finished_at for name in STAGE_ORDER if (record := run.stage(name)) is not None]
    return {
        "folder": str(folder),
        "base": recipe.get("model", {}).get("name_or_path", ""),
        "method": manifest.get("method", ""),
        "steps": train.result.get("steps") if train else None,
        "loss": train.result.get("final_loss") if train else None,
        "comparison": compare.result["tasks"] if compare else [],
        "finished": max(finished, default=""),
    }
