"""Which files of a model folder go to the Hub, and what they may not hold.

A pushed copy differs from the local one in one way: where adapter_config.json and luthier.json name the base by a
folder of this machine, the copy names it by its id on the Hub, and luthier.json holds the hash of the copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.model.embedded import MODEL_NAME, SOURCE_MODEL
from luthier.model.identity import RECORD_NAME
from luthier.runtime.console import progress
from luthier.runtime.errors import EnvironmentProblem, Problem, RecipeError, RunFailed
from luthier.runtime.hashing import hash_bytes
from luthier.runtime.scrub import find_secrets, is_machine_path, scrub_path

__all__ = ["PushFile", "collect", "digest"]

ADAPTER_CONFIG = "adapter_config.json"
_TEXT = (".json", ".md", ".txt", ".jinja", ".yaml", ".yml", "Modelfile", "LICENSE")
_NOT_SCANNED = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
"""Word lists; as large as they are dull."""
_MOST_TEXT = 8 << 20
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class PushFile:
    """One file to be pushed."""

    name: str
    """Path in the repository."""
    size: int
    """Bytes."""
    path: Path
    """Where it lies."""
    data: bytes | None = None
    """What is pushed instead of the file's own bytes; None: the file as it is."""
    change: str | None = None
    """How `data` differs from the file, for people."""


def collect(folder: Path, *, base_model: str | None) -> list[PushFile]:
    """The files of a model folder in order, checked; hidden files stay here.

    Args:
        folder: `RUN/final`, `RUN/merged` or `RUN/gguf`.
        base_model: hub id of the base, for copies whose base is named by a folder.

    Raises:
        RunFailed: a link, a file with a secret in it; all are named.
        RecipeError: an adapter whose base has no id on the Hub.
        EnvironmentProblem: a file cannot be read.
    """
    try:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
        files = [
            PushFile(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, path=path) for path in paths
        ]
        links = [path for path in sorted(folder.rglob("*")) if path.is_symlink() and not _hidden(path, folder)]
        problems = [
            Problem(code="X650", message=f"{link} is a link: what it points to would be published",
                    hint="put the file itself there, or remove the link")
            for link in links
        ]  # fmt: skip
        problems += [problem for file in files for problem in _secrets(file)]
        if problems:
            raise RunFailed(problems=problems)
        return _without_places(files, base_model)
    except OSError as error:
        raise EnvironmentProblem(
            code="R751", message=f"cannot read {error.filename or folder}: {error.strerror}"
        ) from error


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _secrets(file: PushFile) -> Iterator[Problem]:
    if not file.name.endswith(_TEXT) or file.name in _NOT_SCANNED or file.size > _MOST_TEXT:
        return
    text = file.path.read_text("utf-8", errors="replace")
    for line, content in enumerate(text.splitlines(), start=1):
        for kind in find_secrets(content):
            yield Problem(code="X650", message=f"holds {kind}", file=str(file.path), line=line,
                          hint="remove it, and revoke it if it was ever published")  # fmt: skip


def _without_places(files: list[PushFile], base_model: str | None) -> list[PushFile]:
    """Copies of the JSON files that name the base by a place of this machine."""
    by_name = {file.name: file for file in files}
    changed: dict[str, PushFile] = {}
    config = by_name.get(ADAPTER_CONFIG)
    if config is not None:
        value = _load(config)
        named = str(value.get("base_model_name_or_path") or "")
        published = _published(named, base_model)
        if published is None:
            raise RecipeError(
                code="X651",
                message=f"the adapter's base is {scrub_path(named)!r}, a folder of this machine: nobody could load it",
                hint="say where the base is on the Hub: --base-model owner/name (export.push_to_hub.base_model)",
            )
        if published != named:
            told = f"base_model_name_or_path: {published}"
            changed[ADAPTER_CONFIG] = _copy(config, {**value, "base_model_name_or_path": published}, told)
    record = by_name.get(RECORD_NAME)
    if record is not None:
        value = _load(record)
        told = _rename_base(value, base_model) or ""
        for name, copy in changed.items():
            assert copy.data is not None
            if name in value.get("files", {}):
                value["files"][name] = hash_bytes(copy.data)
                told = told or f"hash of {name}"
        if told:
            changed[RECORD_NAME] = _copy(record, value, told)
    return [changed.get(file.name, file) for file in files]


def _rename_base(record: dict[str, Any], base_model: str | None) -> str | None:
    told = None
    places = [(record.get("base"), "name_or_path"), (record.get("merge"), "base")]
    for holder, key in places:
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            name = _published(holder[key], base_model) or scrub_path(holder[key])
            if name != holder[key]:
                holder[key], told = name, f"base: {name}"
    return told


def _published(name: str, base_model: str | None) -> str | None:
    """The id of a base on the Hub; None if only this machine knows it."""
    if base_model is not None:
        return base_model
    if name == MODEL_NAME:
        return SOURCE_MODEL
    return None if is_machine_path(name) or Path(name).exists() or name.startswith(".") or not name else name


def _copy(file: PushFile, value: dict[str, Any], told: str) -> PushFile:
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
    return PushFile(name=file.name, size=len(data), path=file.path, data=data, change=told)


def _load(file: PushFile) -> dict[str, Any]:
    try:
        value = json.loads(file.path.read_text("utf-8"))
    except ValueError as error:
        raise RunFailed(
            code="M317", message=f"{file.path} is damaged: {error}", hint="make the folder again"
        ) from error
    return value if isinstance(value, dict) else {}


def digest(files: list[PushFile]) -> dict[str, tuple[str, str]]:
    """Name -> (sha256, git's SHA-1 of a blob): how the Hub names large files and small ones."""
    found = {}
    with progress("hash", sum(file.size for file in files) / 2**20, "MiB") as bar:
        for file in files:
            large, small = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
            small.update(f"blob {file.size}\0".encode())
            for block in _blocks(file):
                large.update(block)
                small.update(block)
                bar.advance(len(block) / 2**20)
            found[file.name] = (large.hexdigest(), small.hexdigest())
    return found


def _blocks(file: PushFile) -> Iterator[bytes]:
    if file.data is not None:
        yield file.data
        return
    with file.path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block
