"""The processes as rows of shards: `distributed.dp_replicate_size` copies of the model, each in shards.

    8 processes, 2 copies      copy 0   process 0  1  2  3      gathers and reductions within a row
                               copy 1   process 4  5  6  7      then gradients are averaged down each column

Neighbours share a copy, so that with as many copies as machines all gathers stay within a machine, and only gradients
of shards, once reduced there, go over the network. torch's `fully_shard` does both, on a mesh of two dimensions (HSDP:
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from luthier.recipe.replicate_rules import require_copies
from luthier.runtime.env import read_env
from luthier.train.distributed.group import SPARE_SECONDS

__all__ = ["make_mesh"]


def make_mesh(device_type: str, copies: int) -> Any:
    """The mesh (DeviceMesh) that weights are sharded over; called by all processes together.

    Its groups wait as long as the group of all does: the watch names a process that hangs, before torch gives up.

    Raises:
        RecipeError: the processes cannot be divided into so many copies.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    processes = dist.get_world_size()
    require_copies(copies, processes)
    if copies == 1:
        return init_device_mesh(device_type, (processes,))
    parts = processes // copies
    limit = timedelta(seconds=read_env().hang_seconds + SPARE_SECONDS)
    rows = [list(range(first, first + parts)) for first in range(0, processes, parts)]
    columns = [list(range(first, processes, parts)) for first in range(parts)]
    across, _ = dist.new_subgroups_by_enumeration(columns, timeout=limit)
    within, _ = dist.new_subgroups_by_enumeration(rows, timeout=limit)
    return DeviceMesh.from_group([across, within], device_type, mesh=rows, mesh_dim_names=("replicate", "shard"))
