"""One of two processes: `python -m torch.distributed.run ... -m tests.train.zero_saved_memory_worker FOLDER`.

What writing a checkpoint and going on from it take of the memory of each process, under each of DeepSpeed's strategies.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from luthier.train import snapshot
from luthier.train.checkpoint import Checkpoint, checkpoint_path, read_state, save
from luthier.train.distributed import shards
from luthier.train.loop import _save_weights
from luthier.train.processes import make_accelerator
from luthier.train.progress import Progress
from luthier.train.resume import Resumed
from luthier.train.setup import make_trainer
from luthier.train.step import Trainer
from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.train.anonymous import watched
from tests.train.support import resolved, tuned
from tests.train.torchrun import work

SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8, "layers": 8}
FILE = 8 << 20
"""Of a process' shards, in place of a GiB."""
STRATEGIES = ("zero2", "zero3", "fsdp2")


def write_whole(folder: Path) -> dict[str, Any]:
    """A checkpoint as one process writes it, of random numbers; returns its state without what is ours to say."""
    drawn = torch.Generator().manual_seed(1)
    masters = {name: torch.randn(p.shape, generator=drawn) for name, p in tiny_model(**SIZES).named_parameters()}
    moments = {
        f"{name}/{key}": torch.randn(tensor.shape, generator=drawn)
        for name, tensor in masters.items() for key in ("exp_avg", "exp_avg_sq")
    }  # fmt: skip
    moments |= {f"{name}/step": torch.tensor(7.0) for name in masters}
    state = {"step": 1, "optimizer_numbers": {}, "progress": Progress(step=1).to_json()}
    save(checkpoint_path(folder, 1), tensors={"trainable": masters, "optimizer": moments}, state=state)
    return {"bytes": sum(t.nbytes for t in masters.values()), "largest": max(t.nbytes for t in masters.values())}


def trainer_of(strategy: str) -> tuple[Any, Trainer]:
    """A model with the same shapes, nothing trained, and what trains it."""
    recipe = resolved(strategy=strategy)
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    subject = tuned(recipe, model=tiny_model(**SIZES))
    return subject, make_trainer(accelerator, subject.model, recipe.recipe, total_steps=9)


def measured(folder: Path, strategy: str) -> dict[str, int]:
    """Bytes above what was there before: going on from a whole and a sharded checkpoint, writing one, and a result."""
    found: dict[str, int] = {}
    subject, trainer = trainer_of(strategy)
    for step, name in ((1, "from whole"), (2, "from shards")):
        path = checkpoint_path(folder, step)
        with watched(folder, found, name):
            snapshot.restore(trainer, Resumed(Checkpoint(step, path), read_state(path)))
        dist.barrier()
    with watched(folder, found, "writing"):
        snapshot.take(trainer, Progress(step=3), folder=folder / strategy, identity={}, keep=3)
    with watched(folder, found, "result"):
        _save_weights(subject, trainer, tiny_tokenizer(), folder / strategy / "final", max_shard_size="8MB")
    trainer.weights.close()
    return found


def run_all(folder: Path, world_size: int, rank: int, wanted: list[str]) -> None:
    shards.FILE_BYTES = FILE
    found: dict[str, Any] = {}
    if rank == 0:
        found = write_whole(folder)
    dist.barrier()
    _, trainer = trainer_of("fsdp2")
    path = checkpoint_path(folder, 1)
    snapshot.restore(trainer, Resumed(Checkpoint(1, path), read_state(path)))
    snapshot.take(trainer, Progress(step=2), folder=folder, identity={}, keep=3)
    del trainer
    for strategy in wanted or STRATEGIES:
        found[strategy] = measured(folder, strategy)
        gc.collect()
    (folder / f"facts-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    work(run_all)
