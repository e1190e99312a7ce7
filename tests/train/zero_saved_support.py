"""What the files of `zero_saved_worker.py` are compared by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from luthier.train.checkpoint import read_state, verify
from luthier.train.distributed.shards import load_whole
from tests.train.zero_saved_worker import drawn


def held_by(path: Path, process: int) -> dict[str, tuple[list[int], torch.Tensor]]:
    """(offsets, tensor) by name of what a process wrote into a sharded checkpoint, whatever its files are."""
    found = {}
    for file in sorted(path.glob(f"shard-{process + 1:05d}-*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            places = json.loads(stream.metadata()["DCP_SHARDING_INFO"])
            found |= {key: (places[key]["saved_offsets"], stream.get_tensor(key)) for key in stream.keys()}  # noqa: SIM118
    return found


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """-0.0 is equal to 0.0, but not the same."""
    return tensor.contiguous().view(torch.int32)


def require_drawn(path: Path) -> None:
    """Every number of a sharded checkpoint is one of `drawn`, bit for bit, and none is missing."""
    assert verify(path) == [] and read_state(path)["sharded"]
    for group, expected in drawn().items():
        found = load_whole(path, group)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape and torch.equal(bits(found[name]), bits(tensor)), name


def require_same_shards(path: Path, other: Path, *, processes: int) -> None:
    """Both checkpoints consist of the same parts by process."""
    for process in range(processes):
        mine, theirs = held_by(path, process), held_by(other, process)
        assert mine.keys() == theirs.keys() and len(mine) > 20
        for name, (place, tensor) in mine.items():
            assert place == theirs[name][0] and torch.equal(bits(tensor), bits(theirs[name][1])), (process, name)


def facts_of(folder: Path, process: int) -> dict[str, Any]:
    """What a process told."""
    found: dict[str, Any] = json.loads((folder / f"facts-{process}.json").read_text())
    return found
