"""What rows are looked at: those of a run, or those of a file before any run. Both have a key and a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.recipe.objective_kind import OBJECTIVES
from luthier.runtime.errors import Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.studio.clean import read_json
from luthier.studio.names import path_below

__all__ = ["VERSION", "AskedRows", "file_rows", "run_rows"]

VERSION = 2
"""Raised when views are stored differently."""
_LONGEST = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRows:
    """A source of rows."""

    kind: Literal["run", "file"]
    path: str
    """The run folder, or the file; absolute."""
    shown: str
    """As the user names it."""
    root: str
    """Where relative paths start: the folder the run was started in, or the studio's."""
    stamp: str
    """Changes when the rows may have changed."""
    tokenizer: str | None = None
    max_length: int | None = None
    objective: str | None = None
    """None: what the rows look like."""
    format: str = "auto"
    map: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name of the folder it is prepared in."""
        return hash_json([VERSION, asdict(self)])

    def to_json(self) -> dict[str, Any]:
        """For the process that prepares it."""
        return asdict(self)

    @property
    def command(self) -> str:
        """What shows the same in a terminal."""
        if self.kind == "run":
            return f"luthier data show {shlex.quote(self.shown + '/recipe.yaml')}"
        words = ["luthier", "data", "stats", self.shown]
        words += ["--tokenizer", self.tokenizer] if self.tokenizer else []
        words += ["--objective", self.objective] if self.objective else []
        words += ["--format", self.format] if self.format != "auto" else []
        for name, column in self.map.items():
            words += ["--map", f"{name}={column}"]
        return shlex.join(words)


def run_rows(folder: Path, shown: str, *, root: Path) -> AskedRows:
    """The rows of a run; the data stage's record says when they were made."""
    stamps = []
    for name in ("manifest.json", "stages/data.json"):
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        # The manifest is written again by every later stage; the rows are those of the data stage.
        stamps.append(f"{status.st_mtime_ns}" if name.startswith("stages") else "m")
    where = str(read_json(folder / "manifest.json").get("working_directory") or root)
    return AskedRows(kind="run", path=str(folder.resolve()), shown=shown, root=where, stamp=" ".join(stamps))


def file_rows(root: Path, query: Mapping[str, str]) -> AskedRows:
    """The rows of a file that a page names, with its options.

    Raises:
        RecipeError: W105, W106: not a file below `root`; W103: an option that cannot be.
    """
    text = query.get("path", "")
    path = path_below(root, text)
    problems: list[Problem] = []
    objective = query.get("objective") or None
    known = [name for names in OBJECTIVES.values() for name in names]
    if objective is not None and objective not in known:
        problems.append(_wrong("objective", f"one of {', '.join(known)}", objective))
    length = query.get("max_length") or ""
    if length and not (length.isdigit() and 0 < int(length) < _LONGEST):
        problems.append(_wrong("max_length", "a positive number", length))
    columns: dict[str, str] = {}
    for item in filter(None, (query.get("map") or "").split(",")):
        name, colon, column = item.partition(":")
        if not colon or not name or not column:
            problems.append(_wrong("map", "field:column,field:column", item))
        columns[name] = column
    if problems:
        raise RecipeError(problems=problems)
    status = path.stat()
    return AskedRows(
        kind="file", path=str(path.resolve()), shown=text, root=str(root.resolve()),
        stamp=f"{status.st_mtime_ns}.{status.st_size}",
        tokenizer=query.get("tokenizer") or None, max_length=int(length) if length else None, objective=objective,
        format=query.get("format") or "auto", map=columns,
    )  # fmt: skip


def _wrong(name: str, allowed: str, got: str) -> Problem:
    return Problem(code="W103", message=f"{name} must be {allowed}; got {got[:60]!r}")
