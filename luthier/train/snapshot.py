"""The state of a run as a checkpoint, and back into the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.runtime.errors import Problem, RunFailed
from luthier.train.checkpoint import checkpoint_path, load_tensors, read_state, require_valid, save
from luthier.train.distributed.sharded_weights import ShardedWeights
from luthier.train.distributed.shards import load_whole, save_sharded
from luthier.train.distributed.zero_weights import ZeroWeights
from luthier.train.optim_state import optimizer_state, restore_optimizer
from luthier.train.processes import on_main
from luthier.train.progress import Progress
from luthier.train.resume import Resumed, versions
from luthier.train.rotate import remove_old
from luthier.train.step import Trainer

__all__ = ["load_weights", "restore", "take"]


def take(trainer: Trainer, progress: Progress, *, folder: Path, identity: Mapping[str, Any], keep: int) -> list[int]:
    """Write the checkpoint of the present step, verify it, then remove old ones; returns the steps removed.

    Process 0 writes, or each its shards; all leave together.

    Raises:
        EnvironmentProblem: it cannot be written; the older checkpoints are untouched.
        RunFailed: what is on the disk is not what was written.
    """

    held, numbers = _optimizer_state(trainer)
    state = {
        "step": progress.step, "identity": identity, "versions": versions(),
        "progress": progress.to_json(), "optimizer_numbers": numbers,
        "schedule": trainer.schedule.state(),
    }  # fmt: skip
    path = checkpoint_path(folder, progress.step)
    trained: dict[str, Tensor] = dict(trainer.weights.tensors)
    if isinstance(trainer.weights, ZeroWeights):
        trained = dict(trainer.weights.masters_whole(keep=trainer.accelerator.is_main_process))
    elif isinstance(trainer.weights, ShardedWeights):
        save_sharded(trainer.accelerator, path, tensors=_as_sharded(trainer.weights, held), state=state)

    def finish() -> list[int]:
        if not isinstance(trainer.weights, ShardedWeights):
            save(path, tensors={"trainable": trained, "optimizer": held}, state=state)
        require_valid(path)
        best = progress.best.step if progress.best else None
        return remove_old(folder, newest=progress.step, best=best, keep=keep)

    return on_main(trainer.accelerator, finish)


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(trainer.weights, ZeroWeights):
        return trainer.weights.state_whole(trainer.optimizer, keep=trainer.accelerator.is_main_process), {}
    found: tuple[dict[str, Tensor], dict[str, Any]] = optimizer_state(trainer.optimizer, trainer.weights.tensors)
    return found


def _as_sharded(weights: ShardedWeights, held: Mapping[str, Tensor]) -> dict[str, Any]:
    """Masters and the optimizer's state under the names of a sharded checkpoint."""
    found = {f"trainable/{name}": tensor for name, tensor in weights.as_whole(weights.tensors).items()}
    for full_name, tensor in held.items():
        name = full_name.rpartition("/")[0]
        whole = tensor.ndim > 0 and tensor.shape == weights.tensors[name].shape
        found[f"optimizer/{full_name}"] = weights.as_whole({name: tensor})[name] if whole else tensor
    return found


def restore(trainer: Trainer, resumed: Resumed) -> Progress:
    """Weights, optimizer and position from a verified checkpoint."""
    load_weights(trainer, resumed.checkpoint.path)
    saved = _whole(resumed.checkpoint.path, "optimizer")
    if isinstance(trainer.weights, ZeroWeights):
        trainer.weights.load_state(trainer.optimizer, saved)
    else:
        held, numbers = _my_part(trainer, saved, of_state=True), resumed.state["optimizer_numbers"]
        restore_optimizer(trainer.optimizer, trainer.weights.tensors, held=held, numbers=numbers)
    trainer.schedule.restore(resumed.state.get("schedule", {}))
    return Progress.from_json(resumed.state["progress"])


def load_weights(trainer: Trainer, path: Path) -> None:
    """Trained tensors of a verified checkpoint into masters and model.

    Raises:
        RunFailed: the tensors are not the ones that are trained now.
    """
    saved = _whole(path, "trainable")
    wanted: Mapping[str, Any] = trainer.weights.tensors
    if isinstance(trainer.weights, ShardedWeights):
        wanted = trainer.weights.whole
    elif isinstance(trainer.weights, ZeroWeights):
        wanted = {name: torch.empty(shape, device="meta") for name, shape in trainer.weights.shapes.items()}
    problems = list(_misfits(saved, wanted))
    if problems:
        raise RunFailed(problems=[
            Problem(code="T433", message=f"{path.name}: {text}", file=str(path)) for text in problems
        ])  # fmt: skip
    trainer.weights.load(_my_part(trainer, saved, of_state=False))


def _whole(path: Path, group: str) -> dict[str, Tensor]:
    """A group of tensors of a checkpoint, sharded or not, whole."""
    if not read_state(path).get("sharded"):
        return load_tensors(path, group)
    return load_whole(path, group)


def _my_part(trainer: Trainer, whole: Mapping[str, Tensor], *, of_state: bool) -> dict[str, Tensor]:
    """What this process holds of whole tensors, named by parameter or (`of_state`) by parameter and key."""
    weights = trainer.weights
    if not isinstance(weights, ShardedWeights):
        return dict(whole)
    found = {}
    for full_name, tensor in whole.items():
        name = full_name.rpartition("/")[0] if of_state else full_name
        same = name in weights.whole and tensor.shape == weights.whole[name].shape
        found[full_name] = weights.shard_of(name, tensor).contiguous() if same and tensor.ndim else tensor
    return found


def _misfits(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    missing = [f"`{name}` is trained but not in the checkpoint" for name in wanted if name not in saved]
    extra = [f"`{name}` is in the checkpoint but not trained" for name in saved if name not in wanted]
    wrong = [
        f"`{name}` has shape {tuple(saved[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    return [*missing, *extra, *wrong]
