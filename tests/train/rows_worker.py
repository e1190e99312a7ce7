"""One of two processes: `python -m torch.distributed.run --nproc_per_node 2 -m tests.train.rows_worker FOLDER`.

Takes its part of a checkpoint that one process wrote, and says what that took of host memory.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from luthier.train.checkpoint import load_tensors
from luthier.train.distributed.local import my_rows
from luthier.train.distributed.sharded_weights import ShardedWeights
from luthier.train.saved import SavedTensors
from luthier.train.snapshot import _my_rows
from tests.train.load_worker import memory, reset_peak

LAYERS, WIDTH, ROWS = 12, 2048, 2049


def main(folder: Path) -> None:
    """Both groups by rows, compared with the whole; then tensor by tensor, as ZeRO reads them."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.Sequential(*(nn.Linear(WIDTH, ROWS if n == LAYERS - 1 else WIDTH, bias=False) for n in range(LAYERS)))
    fully_shard(model, mesh=mesh)
    weights = ShardedWeights(model)
    path = folder / "step-1"
    found: dict[str, object] = {"processes": dist.get_world_size(), "wrapper": type(model).__name__}
    for group in ("trainable", "optimizer"):
        before = memory()["now"]
        reset_peak()
        mine = _my_rows(weights, SavedTensors(path, group), of_state=group == "optimizer")
        found[group] = memory()["peak"] - before
        expected = load_tensors(path, group)
        odd = [] if mine.keys() == expected.keys() else ["names"]
        for name, tensor in mine.items():
            whole = expected[name]
            like = weights.whole[name.rpartition("/")[0] or name if group == "optimizer" else name]
            part = whole[slice(*my_rows(like))] if whole.ndim else whole
            odd += [] if torch.equal(part, tensor) and tensor.is_contiguous() else [name]
        found[f"{group} odd"] = odd
        del mine, expected
    before = memory()["now"]
    reset_peak()
    total = sum(float(tensor.flatten()[0]) for tensor in SavedTensors(path, "optimizer").values())
    found |= {"one by one": memory()["peak"] - before, "total": total}
    (folder / f"facts-{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
