"""Names that come from a browser: ids of runs, paths of files. Everything is refused that could lead elsewhere.

An id is the path of a run below the runs folder with `~` as `~0` and `/` as `~1` (RFC 6901), so that it is one segment
of a URL. `.` is the runs folder itself, where it is a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.runtime.errors import Problem, RecipeError

__all__ = ["as_argument", "check_name", "name_of", "path_below", "run_folder", "run_id"]

_LONGEST = 255
"""Bytes of one name, on every usual file system."""
_DEPTH = 8


def run_id(name: str) -> str:
    """The id of a run from its path below the runs folder."""
    return name.replace("~", "~0").replace("/", "~1")


def name_of(ident: str) -> str:
    """The path below the runs folder from an id."""
    return ident.replace("~1", "/").replace("~0", "~")


def run_folder(runs: Path, ident: str) -> Path:
    """The folder of a run.

    Raises:
        RecipeError: W104: there is no such run; also for every name that is none.
    """
    missing = RecipeError(code="W104", message=f"there is no run {ident[:200]!r}", hint="`luthier runs ls` lists them")
    if ident == ".":
        folder = runs
    else:
        parts = _parts(name_of(ident))
        if parts is None:
            raise missing
        folder = runs.joinpath(*parts)
    if not _inside(folder, runs) or not ((folder / "recipe.yaml").is_file() or (folder / "manifest.json").is_file()):
        raise missing
    return folder


def path_below(root: Path, text: str) -> Path:
    """A file or folder that a browser names, below `root`.

    Raises:
        RecipeError: W105: absolute, leading out, or with characters that names do not have; W106: nothing is there.
    """
    parts = [] if text in ("", ".") else _parts(text)
    if parts is None:
        raise RecipeError(
            code="W105", message=f"{text[:200]!r} is not a relative path below the folder the studio was started in",
            hint="start `luthier studio` where the files are",
        )  # fmt: skip
    path = root.joinpath(*parts)
    if not _inside(path, root):
        raise RecipeError(code="W105", message=f"{text[:200]!r} leads out of the folder the studio was started in")
    if not path.exists():
        raise RecipeError(code="W106", message=f"there is no {text[:200]!r}")
    return path


def as_argument(folder: Path, line: Mapping[str, Any]) -> str:
    """A run folder as a command names it, from the folder that holds the runs folder."""
    name = str(line["name"])
    return folder.name if line["id"] == "." else f"{folder.parents[name.count('/')].name}/{name}"


def check_name(text: str) -> str:
    """A name for a new run folder.

    Raises:
        RecipeError: W107: it cannot be one.
    """
    parts = _parts(text)
    if parts is None or len(parts) > 2 or any(part.startswith((".", "-")) for part in parts):
        problem = Problem(
            code="W107", message=f"{text[:100]!r} cannot be the name of a run folder",
            hint="letters, digits, `-`, `_` and `.`; not `.` or `-` first; at most one `/`",
        )  # fmt: skip
        raise RecipeError(problems=[problem])
    return "/".join(parts)


def _parts(text: str) -> list[str] | None:
    """The names along a relative path; None for anything else."""
    if not text or len(text) > 4 * _LONGEST or text.startswith("/") or "\\" in text or not text.isprintable():
        return None
    parts = text.split("/")
    if len(parts) > _DEPTH or any(part in ("", ".", "..") or len(os.fsencode(part)) > _LONGEST for part in parts):
        return None
    return None if any(":" in part and os.name == "nt" for part in parts) else parts


def _inside(path: Path, root: Path) -> bool:
    """Whether a path stays below a folder, links followed; compared by whole names, not by text."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):
        return False
