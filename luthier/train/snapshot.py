"""The state of a run as a checkpoint, and back into the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.runtime.errors import Problem, RunFailed
from luthier.train.checkpoint import checkpoint_path, load_tensors, require_valid, save
from luthier.train.optim_state import optimizer_state, restore_optimizer
from luthier.train.processes import on_main
from luthier.train.progress import Progress
from luthier.train.resume import Resumed, versions
from luthier.train.rotate import remove_old
from luthier.train.step import Trainer

__all__ = ["load_weights", "restore", "take"]


def take(trainer: Trainer, progress: Progress, *, folder: Path, identity: Mapping[str, Any], keep: int) -> list[int]:
    """Write the checkpoint of the present step, verify it, then remove old ones; returns the steps removed.

    Process 0 writes; all leave together.

    Raises:
        EnvironmentProblem: it cannot be written; the older checkpoints are untouched.
        RunFailed: what is on the disk is not what was written.
    """

    def write() -> list[int]:
        held, numbers = optimizer_state(trainer.optimizer, trainer.weights.tensors)
        state = {
            "step": progress.step, "identity": identity, "versions": versions(),
            "progress": progress.to_json(), "optimizer_numbers": numbers,
            "schedule": trainer.schedule.state(),
        }  # fmt: skip
        path = checkpoint_path(folder, progress.step)
        save(path, tensors={"trainable": dict(trainer.weights.tensors), "optimizer": held}, state=state)
        require_valid(path)
        best = progress.best.step if progress.best else None
        return remove_old(folder, newest=progress.step, best=best, keep=keep)

    return on_main(trainer.accelerator, write)


def restore(trainer: Trainer, resumed: Resumed) -> Progress:
    """Weights, optimizer and position from a verified checkpoint."""
    load_weights(trainer, resumed.checkpoint.path)
    restore_optimizer(
        trainer.optimizer, trainer.weights.tensors,
        held=load_tensors(resumed.checkpoint.path, "optimizer"), numbers=resumed.state["optimizer_numbers"],
    )  # fmt: skip
    trainer.schedule.restore(resumed.state.get("schedule", {}))
    return Progress.from_json(resumed.state["progress"])


def load_weights(trainer: Trainer, path: Path) -> None:
    """Trained tensors of a verified checkpoint into masters and model.

    Raises:
        RunFailed: the tensors are not the ones that are trained now.
    """
    saved = load_tensors(path, "trainable")
    problems = list(_misfits(saved, trainer.weights.tensors))
    if problems:
        raise RunFailed(problems=[
            Problem(code="T433", message=f"{path.name}: {text}", file=str(path)) for text in problems
        ])  # fmt: skip
    trainer.weights.load(saved)


def _misfits(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    missing = [f"`{name}` is trained but not in the checkpoint" for name in wanted if name not in saved]
    extra = [f"`{name}` is in the checkpoint but not trained" for name in saved if name not in wanted]
    wrong = [
        f"`{name}` has shape {tuple(saved[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    return [*missing, *extra, *wrong]
