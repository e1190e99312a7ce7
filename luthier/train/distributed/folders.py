"""Folders of a run whose machines do not see one file system (`LUTHIER_UNSHARED`): process 0's are the run's.

    bring(device, folder)     what the first process of each other machine has in a folder, to process 0's
    hand_out(device, folder)  process 0's folder, to each other machine

Files travel as bytes through torch.distributed, 32 MiB at a time; a file is written under a temporary name, a folder
renamed when all of it is there. Called by all processes together. Nothing happens where all see one folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from luthier.runtime.atomic import TEMP_PREFIX, fsync_path
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem
from luthier.runtime.hashing import hash_file, hash_json
from luthier.runtime.heartbeat import mark

__all__ = ["bring", "first_of_machine", "hand_out", "require_same"]

CHUNK = 32 << 20


def first_of_machine() -> bool:
    """This process looks after the files of a machine that is not process 0's."""
    env = read_env()
    return env.unshared and env.machine > 0 and env.local_rank == 0


def bring(device: torch.device, folder: Path) -> None:
    """Move the files of other machines into process 0's folder; they are gone there.

    Raises:
        EnvironmentProblem: a disk is full.
    """
    if not read_env().unshared:
        return
    mark("bring shards together", exchange=True, watched=False)
    mine = sorted(file for file in folder.iterdir() if file.is_file()) if first_of_machine() else []
    listed = _exchange([(file.name, file.stat().st_size) for file in mine])
    for source, files in enumerate(listed):
        for name, size in files:
            _send(device, source, {0}, folder / name, size)
    if first_of_machine():
        shutil.rmtree(folder, ignore_errors=True)


def hand_out(device: torch.device, folder: Path) -> None:
    """Give every machine process 0's folder, whole or not at all; one that has the same already keeps it."""
    if not read_env().unshared:
        return
    rank = dist.get_rank()
    main = rank == 0
    mark(f"hand out {folder.name}", exchange=True, watched=False)
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if main or first_of_machine() else []
    # A machine's own folder has another place but the same names in it.
    held = {str(file.relative_to(folder)): (file.stat().st_size, hash_file(file)) for file in files}
    offered = _exchange(held)
    wanted = {other for other, takes in enumerate(_exchange(first_of_machine() and held != offered[0])) if takes}
    temporary = folder.parent / f"{TEMP_PREFIX}{folder.name}"
    mine = rank in wanted
    if mine:
        shutil.rmtree(temporary, ignore_errors=True)
    for name, (size, _) in offered[0].items() if wanted else ():
        file = (folder if main else temporary) / name
        if mine:
            file.parent.mkdir(parents=True, exist_ok=True)
        _send(device, 0, wanted, file, size)
    if mine:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        fsync_path(folder.parent)
    _exchange(None)  # no process reads before its machine has the folder


def require_same(identity: dict[str, Any]) -> None:
    """All machines train the same, from the same: compared once, before the first step.

    Raises:
        EnvironmentProblem: keys that differ, with the machines.
    """
    env = read_env()
    if env.world_size == env.local_world_size:
        return
    hashes = _exchange((env.machine, {key: hash_json(value) for key, value in identity.items()}))
    first = hashes[0][1]
    differing = sorted({
        f"{key} of machine {machine}" for machine, values in hashes for key in {*values, *first}
        if values.get(key) != first.get(key)
    })  # fmt: skip
    if differing:
        raise EnvironmentProblem(
            code="L218", message=f"machines would not train the same: {', '.join(differing)} differ from machine 0's",
            hint="the same recipe, base, data and kind of device on each machine",
        )  # fmt: skip


def _exchange(value: Any) -> list[Any]:
    """What each process has, in their order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _send(device: torch.device, source: int, targets: set[int], file: Path, size: int) -> None:
    """A file of `source` to the same name at each of `targets`."""
    rank = dist.get_rank()
    if rank != source and rank not in targets:
        return
    buffer = torch.empty(min(CHUNK, max(size, 1)), dtype=torch.uint8)
    with file.open("rb" if rank == source else "wb") as stream:
        for start in range(0, size, CHUNK):
            part = buffer[: min(CHUNK, size - start)]
            if rank == source:
                part.copy_(torch.frombuffer(bytearray(stream.read(len(part))), dtype=torch.uint8))
                for target in sorted(targets - {source}):
                    dist.send(part.to(device), target)
            else:
                here = part.to(device)
                dist.recv(here, source)
                stream.write(here.cpu().numpy().tobytes())
    if rank != source:
        fsync_path(file)
