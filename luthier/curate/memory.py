"""What was found among the same rows with the same settings before: a small JSON file in Luthier's cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier.curate.dedup.run import Deduplicated, Duplicate
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem
from luthier.runtime.hashing import hash_folder, hash_json

__all__ = ["load", "load_value", "save", "save_value"]

_KEPT_ENTRIES = 32
_LIBRARIES = ("numpy", "rensa", "torch", "transformers")


def load(folder: Path | None, parts: dict[str, Any]) -> Deduplicated | None:
    """The result for these parts; None if there is none, or it is damaged."""
    found = load_value(folder, parts)
    try:
        return None if found is None else Deduplicated(
            kept=found["kept"], dropped=[Duplicate(**item) for item in found["dropped"]], stages=found["stages"]
        )  # fmt: skip
    except (KeyError, TypeError):
        return None


def load_value(folder: Path | None, parts: dict[str, Any]) -> dict[str, Any] | None:
    """What was stored for these parts; None if there is nothing, or it is damaged."""
    if folder is None:
        return None
    try:
        value = json.loads(_file(folder, parts).read_text("utf-8"))
        found: dict[str, Any] = value["found"]
        return found if value["hash"] == hash_json(found) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(folder: Path | None, parts: dict[str, Any], result: Deduplicated) -> None:
    """Store a result and forget the oldest ones beyond a few. A full disk is told and stops nothing."""
    save_value(folder, parts, asdict(result))


def save_value(folder: Path | None, parts: dict[str, Any], found: dict[str, Any]) -> None:
    """Store a JSON value as `save` does."""
    if folder is None:
        return
    found = json.loads(json.dumps(found))
    try:
        write_json(_file(folder, parts), {"hash": hash_json(found), "found": found})
    except EnvironmentProblem as problem:
        note(f"what was found among the rows is not cached: {problem.problems[0].message}", style="yellow")
    entries = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in entries[_KEPT_ENTRIES:]:
        old.unlink(missing_ok=True)


def _file(folder: Path, parts: dict[str, Any]) -> Path:
    here = Path(__file__).parent
    code = [hash_folder(part, ("*.py",)) for part in (here, here / "dedup", here / "contamination")]
    return folder / f"{hash_json({**parts, 'code': code, 'libraries': [_version(name) for name in _LIBRARIES]})}.json"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
