"""Where a run of online RL begins: at a checkpoint, with which generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from luthier.online import checkpoint
from luthier.online.arguments import Schedule
from luthier.online.processes import Processes
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.console import note
from luthier.runtime.device import Device
from luthier.runtime.env import read_env

__all__ = ["find_start", "reseed", "tell_start"]


def find_start(
    run: RunFolder, identity: Mapping[str, Any], processes: int, *, restart: bool
) -> checkpoint.Found | None:  # fmt: skip
    """The checkpoint to go on from, if there is one; what was logged after it is taken back.

    Raises:
        RunFailed, RecipeError: as `checkpoint.find`.
    """
    if restart:
        checkpoint.forget_all(run)
    found = checkpoint.find(run, identity, processes=processes)
    for name in ("metrics.jsonl", "samples.jsonl"):
        run.roll_back(name, step=found.step if found else 0)
    return found


def reseed(recipe: Recipe, found: checkpoint.Found | None, group: Processes) -> int | None:
    """Another number of processes has no states of generators to go on with: each begins with its own seed."""
    if found is None or found.processes == group.size:
        return None
    words = [recipe.train.seed, found.step, group.size, group.rank]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def tell_start(run: RunFolder, schedule: Schedule, found: checkpoint.Found | None, device: Device) -> None:
    """On the console and as an event. Process 0 alone."""
    step, size = found.step if found else 0, schedule.processes
    if found:
        note(f"  going on from the checkpoint of step {step}")
    if found and found.processes != size:
        run.event("resumed_on_other_processes", step=step, processes=[found.processes, size])
        words = f"  {found.processes} processes wrote it, {size} go on: steps are as large, their samples others"
        note(words, style="yellow")
    several = {"processes": size, "machines": read_env().machines, "strategy": "ddp", "device": device.type}
    run.event(
        "training_started", step=step, total_steps=schedule.steps, resumed_from=step or None,
        **(several if size > 1 else {}),
    )  # fmt: skip
