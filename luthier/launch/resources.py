"""From a recipe and its plan to what is asked of a cluster. Pure.

    time limit   = (steps x seconds a step + seconds before the first step) x margin + overhead
    host memory  = base as stored x 1.25 (read once, then on the device) + checkpoint being written + 8 GiB
    GPUs         = those of the plan; none where the plan is of a CPU

The plan counts optimizer steps only; loading, scoring, merging and reading data are the overhead. On a CPU the model
lives in host memory: the plan's peak is added.

Of a run on several machines each has `processes` processes. Shards are cut from a base that each process of a machine
reads for itself; on a CPU each process has the plan's peak. Where the plan counts more in the memory of a host
(what is offloaded, and the files that a checkpoint holds on their way), that and 8 GiB are asked for; of one machine's
run as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luthier.launch.settings import LaunchSettings
from luthier.launch.task import Resources

__all__ = ["resources_of", "resources_of_machine"]

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


def resources_of_machine(
    plan: Mapping[str, Any] | None, settings: LaunchSettings, *, processes: int, gpus: bool
) -> tuple[Resources, dict[str, str]]:
    """What each machine of a run needs, and the reason of every number (`gpus`, `memory`, `disk`, `time`).

    Args:
        plan: Of all processes of all machines, as `resources_of`.
        settings: Margin, overhead, least and most of everything.
        processes: Of each machine.
        gpus: Each process has a GPU of its own.
    """
    each = f"one process for each of {processes} GPUs" if gpus else f"{processes} processes on the CPU"
    kind = settings.gpu_type
    if plan is None:
        made = Resources(
            gpus=processes if gpus else 0, gpu_type=kind, cpus=settings.cpus,
            memory_bytes=settings.memory_gib * GIB, seconds=settings.max_minutes * 60,
        )  # fmt: skip
        why = "no plan can be made of this objective: as in the settings"
        return made, {"gpus": each, "memory": why, "disk": why, "time": why}
    disk, memory, time = plan["disk"], plan["memory"], plan["time"]
    readers = processes if gpus and plan["setting"]["sharded"] else 1
    needed = readers * disk["base"] * 1.25 + disk["final"] * 3 + 8 * GIB
    words = f"{readers} x base {_gib(disk['base'])} x 1.25 + 3 x result {_gib(disk['final'])} + 8 GiB"
    if not gpus:
        needed += processes * memory["total"]
        words += f" + {processes} x {_gib(memory['total'])} of the plan"
    elif (planned := _planned_on_host(plan, processes) + 8 * GIB) > needed:
        needed = planned
        words = f"the plan's {_gib(planned - 8 * GIB)} for {processes} of its devices + 8 GiB"
    written = sum(disk.values()) - disk["base"]
    made = Resources(
        gpus=processes if gpus else 0, gpu_type=kind, cpus=settings.cpus,
        memory_bytes=max(math.ceil(needed / GIB), settings.memory_gib) * GIB,
        seconds=_seconds(plan, settings), disk_bytes=written + disk["base"],
    )  # fmt: skip
    on = f"{_gib(memory['total'])} of {_gib(memory['device'])}"
    capped = made.seconds == settings.max_minutes * 60
    return made, {
        "gpus": f"{each}; the plan: {on} on each of {plan['num_gpus']}, {plan['setting']['words']}",
        "memory": f"of the host: {words}" + (f", at least {settings.memory_gib} GiB" if settings.memory_gib else ""),
        "disk": f"base {_gib(disk['base'])} + checkpoints {_gib(disk['checkpoints'])} + results "
                f"{_gib(disk['final'] + disk['merged'])}",
        "time": f"{time['steps']} steps x {time['seconds_per_step']:.3g} s x {settings.time_margin} + "
                f"{settings.overhead_minutes} min for loading, scoring, merging"
                + (", cut to max_minutes: then it goes on from its checkpoint" if capped else ""),
    }  # fmt: skip


def _planned_on_host(plan: Mapping[str, Any], processes: int) -> float:
    """The plan's memory of a host with so many of its devices (`plan/host.py`)."""
    host = plan["host"]
    parts, share = host["parts"], processes / host["devices"]
    lasting = sum(parts[name] for name in ("processes", "states", "weights")) * share
    return float(lasting + max(parts["loading"] * share, parts["checkpoint"], parts["result"]))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


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
    elif "host" in plan:
        needed = max(needed, _planned_on_host(plan, plan["host"]["devices"]) + 8 * GIB)
    return max(math.ceil(needed / GIB), settings.memory_gib) * GIB
