"""Checkpoints that are complete or absent.

    checkpoints/step-12/
      trainable-00001.safetensors   trained tensors (fp32 masters where there are any)
      optimizer-00001.safetensors   every tensor of the optimizer's state, as `INDEX.KEY`
      state.json                    where the run is, and what it was: step, best, counters, fingerprint
      manifest.json                 size and blake2b hash of every other file; written last

Everything is written into a temporary folder, flushed to the disk file by file, and renamed at
the end, so a kill at any moment leaves either the whole checkpoint or none. What was damaged
afterwards (a bit, a missing file) is found by `verify` and named. No pickle: tensors are
safetensors, the rest is JSON.

A step's number orders checkpoints, not the time of a file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.runtime.atomic import atomic_folder, fsync_path
from luthier.runtime.errors import Problem, RunFailed
from luthier.runtime.hashing import hash_file

__all__ = [
    "Checkpoint", "checkpoint_path", "checkpoints", "load_tensors", "read_state", "require_valid", "save", "seal",
    "verify",
]  # fmt: skip

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
SHARD_BYTES = 4 << 30  # one file is copied to host memory at a time
HASH_THREADS = 4  # hashing releases the GIL; one thread hashes about 1 GB/s
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that is named like a checkpoint; whether it is one, `verify` says."""

    step: int
    path: Path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step}"


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Everything named like a checkpoint in `folder`, lowest step first."""
    if not folder.is_dir():
        return []
    named = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return sorted((Checkpoint(int(match[1]), path) for match, path in named), key=lambda item: item.step)


def save(path: Path, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; `tensors` maps the stem of a file to what it holds.

    Raises:
        EnvironmentProblem: disk full and the like; nothing is left behind, older checkpoints are untouched.
    """
    with atomic_folder(path) as temporary:
        for stem, group in tensors.items():
            _write_shards(temporary, stem, group)
        seal(temporary, state)


def seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state.json` and, last, the manifest of everything in a folder of tensors."""
    _write(folder / STATE, {"format": FORMAT, **state})
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        hashes = list(pool.map(hash_file, files))
    entries = {
        file.name: {"bytes": file.stat().st_size, "blake2b": digest} for file, digest in zip(files, hashes, strict=True)
    }
    _write(folder / MANIFEST, {"format": FORMAT, "files": entries})


def verify(path: Path) -> list[Problem]:
    """What is wrong with a checkpoint, file by file; empty when every byte is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        entries = {str(name): (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in manifest["files"].items()}
        version = manifest["format"]
    except FileNotFoundError:
        return [_problem(path / MANIFEST, "is missing: the checkpoint was never finished")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [_problem(path / MANIFEST, f"is damaged ({type(error).__name__}: {error})")]
    if version != FORMAT:
        return [_problem(path / MANIFEST, f"has format {version}; this version of Luthier reads format {FORMAT}")]
    names = sorted(entries)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        verdicts = list(pool.map(lambda name: _verify_file(path / name, *entries[name]), names))
    problems = [verdict for verdict in verdicts if verdict is not None]
    extra = sorted({item.name for item in path.iterdir()} - {*names, MANIFEST})
    problems += [_problem(path / name, "does not belong to the checkpoint") for name in extra]
    if STATE not in entries:
        problems.append(_problem(path / STATE, "is not listed in the manifest"))
    return problems


def read_state(path: Path) -> dict[str, Any]:
    """`state.json` of a verified checkpoint."""
    state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
    return state


def load_tensors(path: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of one group of a verified checkpoint, in host memory."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob(f"{stem}-*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def _write_shards(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for number, names in enumerate(_shards(tensors), start=1):
        file = folder / f"{stem}-{number:05d}.safetensors"
        # `copy=True`: safetensors refuses tensors that share memory, as tables of 8-bit optimizers do.
        held = {name: tensors[name].detach().to("cpu", copy=True).contiguous() for name in names}
        try:
            save_file(held, file)
        except SafetensorError as error:
            raise _as_os_error(error, file) from error
        del held  # before the next file's are copied
        fsync_path(file)


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in groups of at most SHARD_BYTES (a larger tensor is a group of its own); at least one group."""
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    yield group


def _write(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())


def _as_os_error(error: Exception, file: Path) -> Exception:
    """safetensors hides the operating system's error in the text of its own: restore it."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(file)) if found else error


def _verify_file(file: Path, size: int, digest: str) -> Problem | None:
    try:
        found = file.stat().st_size
        if found != size:
            return _problem(file, f"has {found} bytes instead of {size}")
        if hash_file(file) != digest:
            return _problem(file, "was altered: its hash differs from the manifest's")
    except FileNotFoundError:
        return _problem(file, "is missing")
    except OSError as error:
        return _problem(file, f"cannot be read: {error.strerror or error}")
    return None


def _problem(file: Path, what: str) -> Problem:
    return Problem(code="T430", message=f"{file.parent.name}/{file.name} {what}", file=str(file))


def require_valid(path: Path) -> None:
    """Raise what `verify` finds.

    Raises:
        RunFailed: one problem per damaged file.
    """
    problems = verify(path)
    if problems:
        raise RunFailed(problems=problems)
