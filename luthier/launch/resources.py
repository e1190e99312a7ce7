"""From a recipe and its plan to what is asked of a cluster. Pure.

    time limit   = (steps x seconds a step + seconds before the first step) x margin + overhead
    host memory  = base as stored x 1.25 (read once, then on the device) + checkpoint being written + 8 GiB
    GPUs         = those of the plan; none where the plan is of a CPU

The plan counts optimizer steps only; loading, scoring, merging and reading data are the overhead. On a CPU the model
lives in host memory: the plan's peak is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luthier.launch.settings import LaunchSettings
from luthier.launch.task import Resources

__all__ = ["resources_of"]

GIB = 1 << 30


def resources_of(plan: Mapping[str, Any] | None, settings: LaunchSettings) -> Resources:
    """What a run asks for.

    Args:
        plan: `luthier plan --json` or `plan.json` of the run; None: no plan could be made, the settings' own values.
        settings: Margin, overhead, least and most of everything.
    """
    if plan is None:
        return Resources(
            gpus=settings.gpus, gpu_type=settings.gpu_type, cpus=settings.cpus,
            memory_bytes=settings.memory_gib * GIB, seconds=settings.max_minutes * 60,
        )  # fmt: skip
    return Resources(
        gpus=settings.gpus, gpu_type=settings.gpu_type, cpus=settings.cpus,
        memory_bytes=_memory(plan, settings), seconds=_seconds(plan, settings),
    )  # fmt: skip


def _seconds(plan: Mapping[str, Any], settings: LaunchSettings) -> int:
    time = plan["time"]
    steps: float = time["steps"] * time["seconds_per_step"] + time.get("seconds_before", 0.0)
    minutes = math.ceil((steps * settings.time_margin + settings.overhead_minutes * 60) / 60)
    return min(minutes, settings.max_minutes) * 60


def _memory(plan: Mapping[str, Any], settings: LaunchSettings) -> int:
    disk, memory = plan.get("disk", {}), plan["memory"]
    needed: float = disk.get("base", 0) * 1.25 + disk.get("final", 0) * 3 + 8 * GIB
    if settings.gpus == 0:
        needed += memory["total"]
    return max(math.ceil(needed / GIB), settings.memory_gib) * GIB
