"""Checkpoints of TRL's trainer in our run folder, made complete or absent.

    checkpoints/checkpoint-12/   what transformers writes: weights, optimizer, schedule, generators, state
      luthier.json               what run it is of, and size and hash of every other file; written last

transformers writes its files one by one into the folder itself, each of several processes the state of its generators
(`rng_state_1.pth`); when all have, process 0 seals. So a folder without `luthier.json` was never
finished: it is removed, with a line. Optimizer and generators are stored by torch.save; they are opened with
`weights_only`, which runs no code.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runs.folder import RunFolder
from luthier.runs.manifest import library_versions
from luthier.runs.stages import differences
from luthier.runtime.atomic import fsync_path, write_json
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError, RunFailed
from luthier.runtime.hashing import hash_file

__all__ = ["FOLDER", "Found", "find", "forget_all", "keep_newest", "seal"]

FOLDER = "checkpoints"
_SEAL = "luthier.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_VERSIONS = ("python", "luthier", "torch", "transformers", "peft", "accelerate", "trl")


@dataclass(frozen=True, slots=True)
class Found:
    """A whole checkpoint of this run."""

    step: int
    path: Path
    progress: dict[str, Any]
    """What `seal` was given besides the identity."""

    @property
    def processes(self) -> int:
        """That wrote it."""
        return int(self.progress.get("processes", 1))


def seal(path: Path, *, identity: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Flush what transformers wrote, and mark the folder as whole.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    files = {}
    for file in sorted(path.rglob("*")):
        fsync_path(file)
        if file.is_file():
            files[file.relative_to(path).as_posix()] = {"bytes": file.stat().st_size, "blake2b": hash_file(file)}
    value = {"identity": dict(identity), "progress": dict(progress), "versions": _versions(), "files": files}
    write_json(path / _SEAL, value)


def keep_newest(run: RunFolder, limit: int | None) -> None:
    """Remove whole checkpoints beyond the newest `limit` (None: none is removed)."""
    whole = sorted((step, path) for step, path in _folders(run) if (path / _SEAL).is_file())
    for _, path in whole[: -limit if limit else 0]:
        (path / _SEAL).unlink()  # first: one that is half removed was never finished
        shutil.rmtree(path)


def find(run: RunFolder, identity: Mapping[str, Any], *, processes: int = 1) -> Found | None:
    """The newest whole checkpoint of this very run; None when there is none at all.

    Another number of processes may go on where a step has the same completions.

    Raises:
        RunFailed: there are checkpoints, and all of them are damaged.
        RecipeError: the newest whole one is of a run with other data, model or settings.
    """
    damaged: list[str] = []
    for step, path in sorted(_folders(run), reverse=True):
        if not (path / _SEAL).is_file():
            note(f"  removing {path.name}: it was never finished", style="yellow")
            run.event("checkpoint_removed", step=step, reason="never finished")
            shutil.rmtree(path)
            continue
        fault = _fault(path)
        if fault is None:
            value = json.loads((path / _SEAL).read_text("utf-8"))
            found = Found(step, path, value["progress"])
            _require_same(_whole_steps(value["identity"], found.processes), _whole_steps(identity, processes), path)
            _compare_versions(run, value["versions"])
            return found
        damaged.append(fault)
        note(f"  not resuming from step {step}: {fault}", style="yellow")
        run.event("checkpoint_refused", step=step, problems=[fault])
    if damaged:
        message = f"none of the checkpoints in {run.path / FOLDER} is whole: {'; '.join(damaged)}"
        raise RunFailed(code="T431", message=message, hint="start this run anew with `--restart`")
    return None


def forget_all(run: RunFolder) -> None:
    """`--restart`: no checkpoint, no metrics."""
    folder = run.path / FOLDER
    if folder.exists():
        shutil.rmtree(folder)
        run.event("checkpoints_removed", reason="restart")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run.path / name).unlink(missing_ok=True)


def _folders(run: RunFolder) -> list[tuple[int, Path]]:
    folder = run.path / FOLDER
    items = folder.iterdir() if folder.is_dir() else ()
    return [(int(match[1]), path) for path in items if path.is_dir() and (match := _NAME.fullmatch(path.name))]


def _fault(path: Path) -> str | None:
    """What is wrong with a sealed checkpoint; None when every byte is as it was written."""
    try:
        value = json.loads((path / _SEAL).read_text("utf-8"))
        files = value["files"]
        assert all(key in value for key in ("identity", "progress", "versions"))
        for name, known in files.items():
            file = path / name
            if not file.is_file():
                return f"{path.name}/{name} is missing"
            if file.stat().st_size != known["bytes"] or hash_file(file) != known["blake2b"]:
                return f"{path.name}/{name} was altered: its hash differs"
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError) as error:
        return f"{path.name}/{_SEAL} is damaged ({type(error).__name__})"
    return None


def _whole_steps(identity: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """With the completions of a step in the place of how they are dealt to processes and micro-batches."""
    train = dict(identity.get("train") or {})
    dealt = [train.pop(key, None) for key in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    if None in dealt:
        return dict(identity)
    return {**identity, "train": {**train, "completions_per_step": math.prod(dealt) * processes}}


def _require_same(was: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    changed = differences(was, json.loads(json.dumps(dict(now))))
    if changed:
        table = "\n".join(f"          {line}" for line in changed)
        raise RecipeError(
            code="T432", message=f"{path} is from a run with other settings, so it cannot go on:\n{table}",
            hint="undo the change, choose another `output_dir`, or start this run anew with `--restart`",
        )  # fmt: skip


def _versions() -> dict[str, str]:
    return {name: version for name, version in library_versions().items() if name in _VERSIONS}


def _compare_versions(run: RunFolder, was: Mapping[str, str]) -> None:
    changed = differences(was, _versions())
    if changed:
        run.event("resumed_with_other_versions", changed=changed)
        note("  resuming with other library versions, the numbers may differ: " + "; ".join(changed), style="yellow")
