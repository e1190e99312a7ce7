"""Trackers besides the run folder: which package each needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from luthier.runtime.errors import EnvironmentProblem, Problem

__all__ = ["PACKAGES", "require_trackers"]

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
