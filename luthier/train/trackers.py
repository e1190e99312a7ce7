"""Trackers besides the run folder, by name, through accelerate. None by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.runtime.trackers import require_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["finish", "log", "require_trackers", "start"]


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
