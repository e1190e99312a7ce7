"""Which files a path means: one file, a folder, or a glob."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from luthier.recipe.paths import glob_paths, is_url
from luthier.runtime.errors import DataError, Problem

__all__ = [
    "KINDS", "PACKED", "DataFile", "find_files", "is_local", "kind_of", "known_kind", "local_file", "rows_among",
]  # fmt: skip

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""Kind of a file by its ending; the text kinds may end in one of `PACKED` as well."""
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files; how a file is packed is told by its first bytes (`streams.py`)."""
_TEXT_KINDS = {"jsonl", "json", "csv", "tsv"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation",
           "val": "validation", "dev": "validation", "eval": "validation"}  # fmt: skip
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows on this disk."""

    path: Path
    kind: str
    """`jsonl`, `json`, `csv`, `tsv`, `parquet` or `arrow`."""
    shown: str
    """How messages call it: the path as given, or `id/file` of a data set on the hub."""


def local_file(path: Path) -> DataFile:
    """A file under its own name.

    Raises:
        DataError: the ending is not known.
    """
    return DataFile(path, kind_of(path), str(path))


def kind_of(path: PurePath, shown: str | None = None) -> str:
    """Kind of a file by its name; `shown` is how a message calls it.

    Raises:
        DataError: the ending is not known.
    """
    kind = known_kind(path)
    if kind is None:
        raise _error(
            shown or str(path),
            f"unknown kind of file; known are: {', '.join(KINDS)} (text kinds also with {', '.join(PACKED)})",
        )
    return kind


def known_kind(path: PurePath) -> str | None:
    """Kind of a file by its name; None for other files, and for the descriptions that lie beside data sets."""
    if path.name in _METADATA:
        return None
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        kind = KINDS.get(suffixes[0]) if len(suffixes) == 2 else None
        return kind if kind in _TEXT_KINDS else None
    return KINDS.get(suffixes[-1]) if suffixes else None


def is_local(path: str) -> bool:
    """Whether a path can only mean something on this disk, and not the id of a data set on the hub."""
    if is_url(path):
        return False
    if Path(path).exists() or any(character in path for character in "*?[\\~"):
        return True
    if path.startswith((".", "/")) or path.count("/") > 1:
        return True
    if "/" in path and Path(path).parent.is_dir():  # `data/tickets` beside a folder `data`: a slip, not an owner
        return True
    return Path(path).suffix.lower() in {*KINDS, *PACKED, ".txt", ".zip", ".tar", ".xlsx", ".yaml", ".pkl"}


def find_files(path: str, *, split: str = "train", notes: Counter[str] | None = None) -> list[DataFile]:
    """Files behind a local path, sorted by name. Files of other kinds in a folder are counted in `notes`.

    A folder written by `datasets.save_to_disk` gives the files it lists.

    Raises:
        DataError: nothing there, no file of a known kind, or a folder that mixes train and test files.
    """
    notes = Counter() if notes is None else notes
    given = Path(path).expanduser()
    if given.is_file():
        return [local_file(given)]
    if given.is_dir():
        return _in_folder(given, split, notes)
    found = [match for match in sorted(glob_paths(given)) if match.is_file()]
    if not found:
        raise _error(
            given, "no such file or folder", hint="check the path: it counts from the folder luthier was started in"
        )
    return [local_file(match) for match in found]


def _in_folder(folder: Path, split: str, notes: Counter[str]) -> list[DataFile]:
    if (folder / "dataset_dict.json").is_file():
        if not (folder / split / "state.json").is_file():
            there = ", ".join(sorted(child.parent.name for child in folder.glob("*/state.json"))) or "none"
            raise _error(folder, f"the saved data set has no split `{split}`; it has: {there}", hint="set `split`")
        folder = folder / split
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved_files(folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    chosen = rows_among([file.relative_to(folder) for file in files], str(folder), split, notes)
    return [local_file(folder / name) for name in chosen]


def rows_among(names: Sequence[PurePath], folder: str, split: str, notes: Counter[str]) -> list[PurePath]:
    """Of the files below a folder, those that hold rows. Hidden ones are passed over, others counted in `notes`.

    Args:
        names: Relative to the folder, in order.
        folder: How messages call it.
        split: Named in the hint when the files are of several splits.
        notes: Gets the number of files of other kinds.

    Raises:
        DataError: no file of a known kind, or files of several splits.
    """
    seen = [name for name in names if not any(part.startswith((".", "__")) for part in name.parts)]
    found = [name for name in seen if known_kind(name)]
    other = len(seen) - len(found)
    if not found:
        raise _error(folder, f"no file of a known kind in this folder ({other} others); known are: {', '.join(KINDS)}")
    splits = {word for name in found if (word := _split_of(name))}
    if len(splits) > 1:
        raise _error(
            folder,
            f"the folder holds files of several splits: {', '.join(sorted(splits))}; they would be mixed",
            hint=f"name the files, for instance `path: {folder.rstrip('/')}/*{split}*`",
        )
    if other:
        notes["files of other kinds in the folder not read"] += other
    return found


def _saved_files(folder: Path) -> list[DataFile]:
    """Arrow files of a data set saved to disk, in the order its `state.json` lists them, none outside the folder."""
    from luthier.data.strict_json import JsonError, parse

    try:
        state = parse((folder / "state.json").read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (JsonError, KeyError, TypeError, ValueError) as error:
        raise _error(folder / "state.json", f"not the state of a saved data set: {error!r}") from error
    if not all(isinstance(name, str) and name == Path(name).name and name.endswith(".arrow") for name in names):
        raise _error(folder / "state.json", "names a file that is no arrow file of this folder")
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise _error(file, "listed in state.json, but missing")
    return [local_file(file) for file in files]


def _split_of(file: PurePath) -> str | None:
    words = re.split(r"[^a-z]+", str(file).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _error(path: Path | str, message: str, *, hint: str | None = None) -> DataError:
    return DataError(problems=[Problem(code="D200", message=message, file=str(path), hint=hint)])
