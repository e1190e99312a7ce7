"""Trackers besides the run folder, by name, through accelerate. None by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem
from luthier.runtime.trackers import require_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["finish", "log", "require_trackers", "start"]


def start(accelerator: Accelerator, *, project: str, config: Mapping[str, Any]) -> None:
    """Open the trackers; `config` is shown beside the curves, nested keys joined by dots.

    Raises:
        EnvironmentProblem: one cannot be opened (its server, its key).
    """
    if accelerator.log_with:
        plain = {
            key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in config.items()
        }
        try:
            accelerator.init_trackers(project, config=plain)
        except Exception as error:
            raise EnvironmentProblem(
                code="L291", message=f"a tracker could not be opened: {type(error).__name__}: {error}",
                hint="see its own settings, or take it out of `train.report_to`: metrics.jsonl has every number",
            ) from error  # fmt: skip


def log(accelerator: Accelerator, values: Mapping[str, float], *, step: int) -> None:
    """Send numbers of one step to every tracker. One that fails is told of and gets no more: the run goes on."""
    for tracker in list(accelerator.trackers):
        try:
            tracker.log(dict(values), step=step)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, hours of training are worth more
            accelerator.trackers.remove(tracker)
            _failed(tracker, error, f"nothing is sent to it after step {step}")


def finish(accelerator: Accelerator) -> None:
    """Close the trackers, and nothing else.

    `Accelerator.end_training` would also take down the process group, which later stages need.
    """
    for tracker in list(accelerator.trackers):
        try:
            tracker.finish()
        except Exception as error:  # noqa: BLE001 - it must not stand in the place of what ended the run
            _failed(tracker, error, "it was not closed")


def _failed(tracker: Any, error: Exception, then: str) -> None:
    what = f"{type(error).__name__}: {error}"
    note(f"warning: tracker {tracker.name} failed ({what}); {then}; metrics.jsonl has every number", style="yellow")
