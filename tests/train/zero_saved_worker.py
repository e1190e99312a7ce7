"""One of several processes: `python -m torch.distributed.run ... -m tests.train.zero_saved_worker FOLDER`.

Checkpoints of random numbers, of sizes that no number of processes divides, are gone on from and written again under
each strategy; runs change their strategy in the middle; a process cannot write. `test_zero_saved.py` looks at what is
left.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from luthier.runtime.errors import LuthierError
from luthier.train import snapshot
from luthier.train.checkpoint import Checkpoint, checkpoint_path, read_state, save
from luthier.train.distributed import shards
from luthier.train.processes import make_accelerator
from luthier.train.progress import Best, Progress
from luthier.train.resume import Resumed
from luthier.train.setup import make_trainer
from luthier.train.step import Trainer
from tests.support.tiny import tiny_model
from tests.train.support import FULL, resolved, tuned, whole
from tests.train.test_processes import half
from tests.train.torchrun import work
from tests.train.worker import thirteen

SIZES = {"vocab_size": 601, "intermediate_size": 101, "mlp_bias": True}
"""Matrices whose rows two processes do not divide, and biases whose numbers they do not: ZeRO-3 fills those up."""
FEW = ("zero2", "zero3", "failing", "fsdp2 to zero3", "zero2 to fsdp2")
"""With `make test-processes`."""
MORE = ("zero1", "zero1-bf16", "zero2-bf16", "zero3-bf16", "zero3 to fsdp2", "fsdp2 to zero2", "zero3 to zero1")
"""Strategies of checkpoints, and of the first and the second half of a run."""
FILE = 80_000
"""Bytes of a process' shards in a file, so that there are several."""


def drawn() -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint's tensors, with numbers that a sum with zeros or a cast would change."""
    numbers = torch.Generator().manual_seed(1)
    masters = {name: torch.randn(p.shape, generator=numbers) for name, p in tiny_model(**SIZES).named_parameters()}
    moments = {
        f"{name}/{key}": torch.randn(tensor.shape, generator=numbers)
        for name, tensor in masters.items() for key in ("exp_avg", "exp_avg_sq")
    }  # fmt: skip
    for tensor in (*masters.values(), *moments.values()):
        tensor.view(-1)[::7] = -0.0
        tensor.view(-1)[3] = 1e-42
    counters = {f"{name}/step": torch.tensor(7.0) for name in masters}
    return {"trainable": masters, "optimizer": {**moments, **counters}}


def trainer_of(label: str) -> Trainer:
    """Of a model with the same shapes, nothing trained."""
    strategy, _, kind = label.partition("-")
    recipe = resolved(strategy=strategy)
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    model = tiny_model(seed=5, **SIZES)
    model = tuned(recipe, model=model.to(torch.bfloat16) if kind else model).model
    return make_trainer(accelerator, model, recipe.recipe, total_steps=9)


def moved(label: str, source: Path, target: Path, step: int) -> list[str]:
    """Go on from one checkpoint and write another at once; returns what of the model is not the masters' rounded."""
    trainer = trainer_of(label)
    found = Resumed(Checkpoint(1, source), read_state(source))
    assert snapshot.restore(trainer, found).step == int(source.name.removeprefix("step-"))
    masters, kind = drawn()["trainable"], torch.bfloat16 if label.endswith("bf16") else torch.float32
    live = trainer.weights.whole if label == "fsdp2" else trainer.weights.live
    odd = [name for name, p in live.items() if not torch.equal(whole(p), masters[name].to(kind))]
    snapshot.take(trainer, Progress(step=step), folder=target, identity={}, keep=9)
    trainer.weights.close()
    return odd


@contextmanager
def no_room(rank: int) -> Iterator[None]:
    """A process may not write files of 79,000 bytes: it and the other have written seven when one is larger."""
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (79_000, held[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)


def failing(folder: Path, source: Path, rank: int) -> dict[str, Any]:
    """A checkpoint, one that process `rank` cannot write, and then one that it can; of two the better stays."""
    trainer, told = trainer_of("zero3"), {}
    snapshot.restore(trainer, Resumed(Checkpoint(1, source), read_state(source)))
    snapshot.take(trainer, Progress(step=4), folder=folder, identity={}, keep=1)
    try:
        with no_room(rank):
            snapshot.take(trainer, Progress(step=5), folder=folder, identity={}, keep=1)
    except LuthierError as error:
        told = {"type": type(error).__name__, "exit_code": error.exit_code, "text": str(error)}
    dist.barrier()  # process 0 cleans up
    left = sorted(item.name for item in folder.iterdir())
    dist.barrier()
    for step in (6, 7):
        snapshot.take(trainer, Progress(step=step, best=Best(4, 0.1)), folder=folder, identity={}, keep=1)
    trainer.weights.close()
    return {"told": told, "left": left, "kept": sorted(item.name for item in folder.iterdir())}


def crossed(folder: Path, name: str, world_size: int, rank: int) -> None:
    """A run of which the second half is another strategy's."""
    first, second = name.split(" to ")
    if not (folder / f"started-{first}").exists():
        dist.barrier()  # all have looked
        thirteen(folder / f"started-{first}", world_size, FULL, strategy=first)
    dist.barrier()
    if rank == 0:
        half(folder / f"started-{first}", folder / name)
    dist.barrier()
    run = thirteen(folder / name, world_size, FULL, strategy=second)
    weights = {key: whole(p).detach().clone() for key, p in run.model.named_parameters()}
    if rank == 0:
        save_file(weights, folder / name / "weights.safetensors")
        (folder / name / "result.json").write_text(json.dumps(run.result.to_json()))


def run_all(folder: Path, world_size: int, rank: int, wanted: list[str]) -> None:
    shards.FILE_BYTES = FILE
    first = checkpoint_path(folder, 1)
    if rank == 0:
        state = {"step": 1, "optimizer_numbers": {}, "progress": Progress(step=1).to_json()}
        save(first, tensors=drawn(), state=state)
    dist.barrier()
    sharded, facts = checkpoint_path(folder / "fsdp2", 2), {"fsdp2": moved("fsdp2", first, folder / "fsdp2", 2)}
    for name in wanted:
        if name == "failing":
            facts[name] = failing(folder / name, sharded, rank=1)
        elif " to " in name:
            crossed(folder, name, world_size, rank)
        else:
            facts[name] = [
                *moved(name, first, folder / name, 2), *moved(name, sharded, folder / name, 3),
                *moved("fsdp2", checkpoint_path(folder / name, 2), folder / name, 4),
            ]  # fmt: skip
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    work(run_all)
