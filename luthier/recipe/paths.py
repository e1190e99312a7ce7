"""Tell local files from hub ids, and find what a mistyped path was meant to be.

A text is a local path when it starts with `.`, `/` or `~`, holds a glob, ends like a data file,
has more parts than a hub id (`owner/name`), or exists. Relative paths start at the working directory.
"""

from __future__ import annotations

import difflib
import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["expand", "glob_paths", "is_folder", "is_url", "looks_local", "missing_path", "near_names"]

DATA_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".gz", ".bz2", ".xz", ".zst",
    ".txt", ".zip", ".tar", ".xlsx", ".yaml", ".yml", ".pkl",
)  # fmt: skip
_GLOB = re.compile(r"[*?\[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_MOST_NAMES = 2_000
"""Of a folder, looked at for a near name."""


def expand(text: str) -> Path:
    """The path that a text in a recipe names: `~` is the home folder."""
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def is_url(text: str) -> bool:
    """`scheme://...`."""
    return _URL.match(text) is not None


def looks_local(text: str, *, suffixes: tuple[str, ...] = DATA_SUFFIXES) -> bool:
    """Whether a text must be a file or folder here, rather than the id of something on a hub.

    Without `suffixes` it is a model or tokenizer, which is never a single file.
    """
    if suffixes and is_url(text):
        return False
    if "\0" in text or text.startswith((".", "/", "~")) or text.lower().endswith(suffixes) or _GLOB.search(text):
        return True
    if suffixes and "/" in text and expand(text).parent.is_dir():
        return True  # `data/tickets` beside a folder `data`: a slip, not the data set of an owner called data
    return _HUB_ID.match(text) is None or _exists(expand(text))


def glob_paths(pattern: Path) -> Iterator[Path]:
    """What a glob matches, in no order. `**` goes into folders, not through links to them: those may go in circles."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.iglob(str(pattern)))  # noqa: PTH207 - `Path.glob` takes no absolute patterns
        return
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    rest = pattern.parts[len(fixed) :]
    dotted = any(part.startswith(".") for part in rest)
    for path in Path(*fixed).glob(str(Path(*rest))):
        if dotted or not any(part.startswith(".") for part in path.parts[len(fixed) :]):
            yield path


def is_folder(text: str) -> bool:
    """Whether a folder of this name is here."""
    return "\0" not in text and expand(text).is_dir()


def missing_path(text: str) -> tuple[str, str | None] | None:
    """None if the path (or a file for the glob) exists; else what was looked for, and a hint."""
    if "\0" in text:
        return "a path may not hold the character U+0000", None
    path = expand(text)
    if _exists(path) or _matches(path, text):
        return None
    full = path.absolute()
    if _GLOB.search(text):
        return f"no file matches {full}", None
    folder = full.parent
    if not _exists(folder):
        there = next((parent for parent in folder.parents if _exists(parent)), folder)
        names = near_names(there / folder.relative_to(there).parts[0]) if there != folder else []
        hint = f"did you mean {' or '.join(names)}?" if names else "relative paths start at the working directory"
        return f"no such file: {full} (of that path, {there} is there)", hint
    names = near_names(full)
    return f"no such file or folder: {full}", f"did you mean {' or '.join(names)}?" if names else None


def near_names(path: Path, *, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Up to three names beside `path` that are like its own."""
    try:
        beside = sorted(entry.name for _, entry in zip(range(_MOST_NAMES), path.parent.iterdir(), strict=False))
    except OSError:
        return []
    names = [name for name in beside if not suffixes or name.endswith(suffixes)]
    return difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)


def _matches(path: Path, text: str) -> bool:
    """Whether a glob matches anything."""
    return _GLOB.search(text) is not None and next(glob_paths(path), None) is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
