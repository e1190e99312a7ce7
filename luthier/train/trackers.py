"""Trackers besides the run folder, by name, through accelerate. None by default."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.runtime.errors import EnvironmentProblem, Problem

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["finish", "log", "require_trackers", "start"]

# Tracker -> packages of which one must be there. accelerate drops a tracker without a word otherwise.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
}


def require_trackers(names: Sequence[str]) -> None:
    """Check that every tracker asked for is installed.

    Raises:
        EnvironmentProblem: naming each that is not.
    """
    missing = [name for name in names if not any(importlib.util.find_spec(package) for package in PACKAGES[name])]
    if missing:
        raise EnvironmentProblem(problems=[
            Problem(
                code="T461", message=f"`train.report_to` names {name}, which is not installed",
                hint=f"pip install {PACKAGES[name][0]}, or take {name} out of `report_to`",
            )
            for name in missing
        ])  # fmt: skip


def start(accelerator: Accelerator, *, project: str, config: Mapping[str, Any]) -> None:
    """Open the trackers; `config` is shown beside the curves, nested keys joined by dots."""
    if accelerator.log_with:
        plain = {
            key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in config.items()
        }
        accelerator.init_trackers(project, config=plain)


def log(accelerator: Accelerator, values: Mapping[str, float], *, step: int) -> None:
    """Send numbers of one step to every tracker."""
    if accelerator.trackers:
        accelerator.log(dict(values), step=step)


def finish(accelerator: Accelerator) -> None:
    """Close the trackers, and nothing else.

    `Accelerator.end_training` would also take down the process group, which later stages need.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
