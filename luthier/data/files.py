"""Which files a path means: one file, a folder, or a glob."""

from __future__ import annotations

import glob
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from luthier.runtime.errors import DataError, Problem

__all__ = ["KINDS", "DataFile", "find_files", "is_local", "kind_of", "local_file"]

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
"""Kind of a file by its ending; the text kinds may end in `.gz` as well."""
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


def kind_of(path: Path) -> str:
    """Kind of a file by its name.

    Raises:
        DataError: the ending is not known.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        kind = KINDS.get(suffixes[0]) if len(suffixes) == 2 else None
        kind = kind if kind in _TEXT_KINDS else None
    else:
        kind = KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise _error(path, f"unknown kind of file; known are: {', '.join(KINDS)} (text kinds also with .gz)")
    return kind


def is_local(path: str) -> bool:
    """Whether a path can only mean something on this disk, and not the id of a data set on the hub."""
    if Path(path).exists() or any(character in path for character in "*?[\\~"):
        return True
    if path.startswith((".", "/")) or path.count("/") > 1:
        return True
    if "/" in path and Path(path).parent.is_dir():  # `data/tickets` beside a folder `data`: a slip, not an owner
        return True
    return Path(path).suffix.lower() in {*KINDS, ".gz", ".txt", ".zip", ".tar", ".xlsx", ".yaml", ".pkl"}


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
    # Not Path.glob: a pattern may be absolute.
    matches = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]  # noqa: PTH207
    found = [match for match in matches if match.is_file()]
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
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file, folder)]
    found = [file for file in files if _known(file)]
    other = len(files) - len(found)
    if not found:
        raise _error(folder, f"no file of a known kind in this folder ({other} others); known are: {', '.join(KINDS)}")
    splits = {name for file in found if (name := _split_of(file, folder))}
    if len(splits) > 1:
        raise _error(
            folder,
            f"the folder holds files of several splits: {', '.join(sorted(splits))}; they would be mixed",
            hint=f"name the files, for instance `path: {folder}/*{split}*`",
        )
    if other:
        notes["files of other kinds in the folder not read"] += other
    return [local_file(file) for file in found]


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


def _known(file: Path) -> bool:
    if file.name in _METADATA:
        return False
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        return len(suffixes) == 2 and KINDS.get(suffixes[0]) in _TEXT_KINDS
    return bool(suffixes) and suffixes[-1] in KINDS


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


def _split_of(file: Path, folder: Path) -> str | None:
    words = re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _error(path: Path, message: str, *, hint: str | None = None) -> DataError:
    return DataError(problems=[Problem(code="D200", message=message, file=str(path), hint=hint)])
