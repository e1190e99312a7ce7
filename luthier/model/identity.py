"""What a model folder is, by content: hashes of its files, and the record beside a saved result.

`luthier.json` is written into every folder Luthier saves: the hash of each file, and for an
adapter the base it belongs to. A byte that changed afterwards is found by name at the next load.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.runtime.atomic import write_json
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, Problem, RunFailed
from luthier.runtime.hashing import hash_file, hash_json

__all__ = ["RECORD_NAME", "BaseRecord", "base_identity", "read_record", "verify_record", "write_record"]

RECORD_NAME = "luthier.json"
# What decides a model's behaviour; README, images and the like are not part of it.
_PATTERNS = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """The base a model came from, as far as it must be known to load the result again."""

    name_or_path: str
    revision: str | None
    hash: str
    """Over the weights and config.json; see `base_identity`."""
    quantization: str = "none"
    """How the base was stored while the result was trained: `none` or `nf4`."""
    new_tokens: list[str] = field(default_factory=list)


def base_identity(folder: Path) -> dict[str, Any]:
    """Hashes of a model folder: `{"hash", "weights", "config", "tokenizer", "files": {name: hash}}`.

    `hash` covers the weights and config.json. Hashing reads every byte once; the result of each file is
    kept in the cache folder under its path, size, inode and times, so the next call costs nothing.

    Raises:
        EnvironmentProblem: a file cannot be read.
    """
    names = sorted({file.name for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()})
    files = {name: _cached_hash(folder / name) for name in names}
    weights = hash_json([[name, files[name]] for name in names if ".safetensors" in name])
    config = hash_json([[name, files[name]] for name in names if name in ("config.json", "adapter_config.json")])
    others = [name for name in names if ".safetensors" not in name and not name.endswith("config.json")]
    return {
        "hash": hash_json([weights, config]),
        "weights": weights,
        "config": config,
        "tokenizer": hash_json([[name, files[name]] for name in [*others, *_present(names, "tokenizer_config.json")]]),
        "files": files,
    }


def _present(names: list[str], name: str) -> list[str]:
    return [name] if name in names else []


def _cached_hash(path: Path) -> str:
    """Content hash of one file; remembered while size, inode and times stay what they were."""
    try:
        real = path.resolve(strict=True)
        stat = real.stat()
        # ctime as well: a byte can be changed and mtime set back, but ctime then still moves.
        key = hash_json([str(real), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns])
        entry = read_env().cache_dir / "hashes" / f"{key}.json"
        if entry.is_file():
            value = json.loads(entry.read_text("utf-8")).get("hash")
            if isinstance(value, str):
                return value
        value = hash_file(real)
    except OSError as error:
        raise EnvironmentProblem(code="M303", message=f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError:
        value = hash_file(path)
    with suppress(EnvironmentProblem):
        # A cache that cannot be written (read-only home, full disk) costs time, nothing else.
        write_json(entry, {"path": str(real), "hash": value})
    return value


def write_record(folder: Path, *, kind: str, base: BaseRecord | None, **extra: Any) -> None:
    """Write `luthier.json` into a finished folder: kind, base, and the hash of every file in it."""
    files = {
        str(file.relative_to(folder)): hash_file(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != RECORD_NAME
    }
    write_json(
        folder / RECORD_NAME,
        {
            "kind": kind,
            "base": None if base is None else asdict(base),
            **extra,
            "versions": _versions(),
            "files": files,
        },
    )


def read_record(folder: Path) -> dict[str, Any] | None:
    """The content of `luthier.json`, or None for a folder that Luthier did not write.

    Raises:
        RunFailed: the record is damaged.
    """
    file = folder / RECORD_NAME
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFailed(code="M317", message=f"{file} is damaged: {error}", hint="make the folder again") from error
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        raise RunFailed(code="M317", message=f"{file} is damaged: no list of files", hint="make the folder again")
    return value


def verify_record(folder: Path) -> dict[str, Any] | None:
    """Compare every file with the hash written beside it; returns the record (None: not ours).

    Raises:
        RunFailed: files were changed or are missing since they were written; all are named.
    """
    record = read_record(folder)
    if record is None:
        return None
    problems = []
    for name, expected in record["files"].items():
        file = folder / name
        if not file.is_file():
            message = f"{file} is missing; {RECORD_NAME} lists it"
            problems.append(Problem(code="M317", message=message, hint="make the folder again, or copy all of it"))
        elif _cached_hash(file) != expected:
            problems.append(
                Problem(
                    code="M317",
                    message=f"{file} is not what was written: its hash differs from the one in {RECORD_NAME}",
                    hint=f"make the folder again; if you changed the file on purpose, delete {folder / RECORD_NAME}",
                )
            )
    if problems:
        raise RunFailed(problems=problems)
    return record


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("luthier", "torch", "transformers", "peft", "safetensors", "bitsandbytes"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
