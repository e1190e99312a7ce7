"""The state of a run as a checkpoint, and back into the trainer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.fast.kernels.maps8 import BLOCK
from luthier.runtime.env import read_env
from luthier.runtime.errors import Problem, RunFailed
from luthier.train.adamw8 import CODES, decoded
from luthier.train.checkpoint import checkpoint_path, require_valid, save
from luthier.train.distributed.folders import first_of_machine, hand_out
from luthier.train.distributed.local import my_rows
from luthier.train.distributed.sharded_weights import ShardedWeights
from luthier.train.distributed.shards import save_sharded
from luthier.train.distributed.zero_weights import ZeroWeights
from luthier.train.optim_state import optimizer_state, restore_optimizer
from luthier.train.processes import on_main
from luthier.train.progress import Progress
from luthier.train.resume import Resumed, versions
from luthier.train.rotate import remove_old
from luthier.train.saved import SavedTensors
from luthier.train.step import Trainer

SCALES = ("/absmax1", "/absmax2")

__all__ = ["load_weights", "restore", "take"]


def take(trainer: Trainer, progress: Progress, *, folder: Path, identity: Mapping[str, Any], keep: int) -> list[int]:
    """Write the checkpoint of the present step, verify it, then remove old ones; returns the steps removed.

    Process 0 writes, or each its shards; all leave together.

    Raises:
        EnvironmentProblem: it cannot be written; the older checkpoints are untouched.
        RunFailed: what is on the disk is not what was written.
    """

    held, numbers = _optimizer_state(trainer)
    weights, path = trainer.weights, checkpoint_path(folder, progress.step)
    state = {
        "step": progress.step, "identity": identity, "versions": versions(),
        "progress": progress.to_json(), "optimizer_numbers": numbers,
        "schedule": trainer.schedule.state(),
    }  # fmt: skip
    trained: dict[str, Tensor] = {}
    if isinstance(weights, ShardedWeights):
        save_sharded(trainer.accelerator, path, tensors=_as_sharded(weights, held), state=state)
    elif isinstance(weights, ZeroWeights) and weights.in_shards:
        rows = weights.rows()
        save_sharded(trainer.accelerator, path, tensors=rows, state=state, sizes=rows.sizes)
    elif isinstance(weights, ZeroWeights):
        trained = dict(weights.masters_whole(keep=trainer.accelerator.is_main_process))
    else:
        trained = dict(weights.tensors)

    def finish() -> list[int]:
        if not weights.in_shards:
            save(path, tensors={"trainable": trained, "optimizer": held}, state=state)
        require_valid(path)
        best = progress.best.step if progress.best else None
        return remove_old(folder, newest=progress.step, best=best, keep=keep)

    return on_main(trainer.accelerator, finish)


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers; of DeepSpeed's no tensor where the checkpoint is in shards."""
    if isinstance(trainer.weights, ZeroWeights):
        if trainer.weights.in_shards:
            return {}, {}
        return trainer.weights.state_whole(keep=trainer.accelerator.is_main_process), {}
    found: tuple[dict[str, Tensor], dict[str, Any]] = optimizer_state(trainer.optimizer, trainer.weights.tensors)
    return found


def _as_sharded(weights: ShardedWeights, held: Mapping[str, Tensor]) -> dict[str, Any]:
    """Masters and the optimizer's state under the names of a sharded checkpoint."""
    found = {f"trainable/{name}": tensor for name, tensor in weights.as_whole(weights.tensors).items()}
    for full_name, tensor in held.items():
        name = full_name.rpartition("/")[0]
        whole = tensor.ndim > 0 and tensor.shape == weights.tensors[name].shape
        if full_name.endswith(SCALES):
            found[f"optimizer/{full_name}"] = weights.blocks_as_whole(name, tensor, block=BLOCK)
        else:
            found[f"optimizer/{full_name}"] = weights.as_whole({name: tensor})[name] if whole else tensor
    return found


def restore(trainer: Trainer, resumed: Resumed) -> Progress:
    """Weights, optimizer and position from a verified checkpoint, on whichever machine it is."""
    load_weights(trainer, resumed.checkpoint.path)
    saved, weights = SavedTensors(resumed.checkpoint.path, "optimizer"), trainer.weights
    if isinstance(weights, ZeroWeights):
        weights.load_state(trainer.optimizer, saved)
    else:
        held = _my_rows(weights, saved, of_state=True) if isinstance(weights, ShardedWeights) else saved
        numbers = resumed.state["optimizer_numbers"]
        restore_optimizer(trainer.optimizer, trainer.weights.tensors, held=held, numbers=numbers)
    trainer.schedule.restore(resumed.state.get("schedule", {}))
    if read_env().unshared:
        trainer.accelerator.wait_for_everyone()  # others of this machine read it too
    if first_of_machine():
        shutil.rmtree(resumed.checkpoint.path, ignore_errors=True)  # process 0's is the run's
    return Progress.from_json(resumed.state["progress"])


def load_weights(trainer: Trainer, path: Path) -> None:
    """Trained tensors of a verified checkpoint into masters and model.

    Raises:
        RunFailed: the tensors are not the ones that are trained now.
    """
    hand_out(trainer.accelerator.device, path)
    weights = trainer.weights
    shapes: Mapping[str, Any] = {name: tensor.shape for name, tensor in weights.tensors.items()}
    if isinstance(weights, ShardedWeights):
        shapes = {name: tensor.shape for name, tensor in weights.whole.items()}
    elif isinstance(weights, ZeroWeights):
        shapes = weights.shapes
    saved = SavedTensors(path, "trainable")
    problems = list(_misfits(saved.shapes, shapes))
    if problems:
        raise RunFailed(problems=[
            Problem(code="T433", message=f"{path.name}: {text}", file=str(path)) for text in problems
        ])  # fmt: skip
    weights.load(_my_rows(weights, saved, of_state=False) if isinstance(weights, ShardedWeights) else saved)


def _my_rows(weights: ShardedWeights, saved: SavedTensors, *, of_state: bool) -> dict[str, Tensor]:
    """This process' rows of tensors that are named by parameter or (`of_state`) by parameter and key."""
    found: dict[str, Tensor] = {}
    codes: dict[str, Tensor] = {}
    for full_name, shape in saved.shapes.items():
        name, _, key = full_name.rpartition("/") if of_state else (full_name, "", "")
        if f"{name}{SCALES[0]}" in saved and key in CODES:
            codes[full_name] = saved[full_name]
            if all(f"{name}/{one}" in codes for one in CODES):  # decoded as soon as they are all there
                found |= _my_part(weights, {f"{name}/{one}": codes.pop(f"{name}/{one}") for one in CODES})
        elif shape and name in weights.whole and shape == weights.whole[name].shape:
            found[full_name] = saved.rows(full_name, *my_rows(weights.whole[name]))
        else:
            found[full_name] = saved[full_name]
    return found


def _my_part(weights: ShardedWeights, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this process holds of a whole state of the optimizer."""
    found = {}
    for full_name, tensor in _in_fp32(whole).items():
        name = full_name.rpartition("/")[0]
        same = name in weights.whole and tensor.shape == weights.whole[name].shape
        found[full_name] = weights.shard_of(name, tensor).clone() if same and tensor.ndim else tensor
    return found


def _in_fp32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State in which moments in 8 bits stand in fp32, whose rows can be cut anywhere."""
    found = {name: tensor for name, tensor in state.items() if name.rpartition("/")[2] not in CODES}
    for name in [name.removesuffix(SCALES[0]) for name in state if name.endswith(SCALES[0])]:
        moments = decoded({key: state[f"{name}/{key}"] for key in CODES})
        found |= {f"{name}/{key}": tensor for key, tensor in moments.items()}
    return found


def _misfits(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What does not fit between the shapes of a checkpoint and those that are trained, by name."""
    missing = [f"`{name}` is trained but not in the checkpoint" for name in wanted if name not in saved]
    extra = [f"`{name}` is in the checkpoint but not trained" for name in saved if name not in wanted]
    wrong = [
        f"`{name}` has shape {tuple(saved[name])} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in saved and saved[name] != shape
    ]
    return [*missing, *extra, *wrong]
