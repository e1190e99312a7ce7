"""Numbers of processes and machines that `luthier launch` takes from a configuration of accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.recipe.accelerate.merge import config_of
from luthier.recipe.accelerate.reading import Reading
from luthier.recipe.accelerate.translate import Processes
from luthier.recipe.schema import Recipe
from luthier.runtime.env import read_visible_devices
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["Asked", "with_accelerate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says on processes and machines; None: nothing."""

    num_gpus: int | None = None
    num_processes: int | None = None
    """Of the CPU."""
    nodes: int | None = None
    node_rank: int | None = None
    rendezvous: str | None = None
    visible_devices: str | None = None
    """Value for CUDA_VISIBLE_DEVICES in the processes; never from the command line."""


def with_accelerate(recipe: Recipe, asked: Asked) -> Asked:
    """`asked`, completed from `distributed.accelerate_config`, if the recipe has one.

    Only the machine's own number may differ: the file is often the same on all machines.

    Raises:
        RecipeError: what the file says and the command line says otherwise, naming both.
    """
    if recipe.distributed.accelerate_config is None:
        return asked
    found = config_of(recipe)
    if isinstance(found, list):
        raise RecipeError(problems=found)
    reading, processes = found
    problems = list(_contradictions(reading, processes, asked))
    if problems:
        raise RecipeError(problems=problems)
    nodes = asked.nodes or processes.machines or 1
    num_gpus, num_processes = asked.num_gpus, asked.num_processes
    if num_gpus is None and num_processes is None and processes.total is not None:
        here = processes.total // nodes
        num_gpus, num_processes = (None, here) if processes.cpu else (here, None)
    rank = asked.node_rank if asked.node_rank is not None else processes.machine_rank or 0
    return Asked(
        num_gpus=num_gpus, num_processes=num_processes, nodes=nodes, node_rank=rank,
        rendezvous=asked.rendezvous or (_rendezvous(processes) if nodes > 1 else None),
        visible_devices=None if num_processes is not None else processes.gpu_ids,
    )  # fmt: skip


def _rendezvous(processes: Processes) -> str | None:
    if processes.address is None or processes.port is None:
        return None
    return f"{processes.address}:{processes.port}"


def _contradictions(reading: Reading, processes: Processes, asked: Asked) -> Iterator[Problem]:
    nodes = asked.nodes or processes.machines or 1
    if asked.nodes is not None and processes.machines not in (None, asked.nodes):
        yield _problem(reading, "num_machines", f"`--nodes {asked.nodes}`")
    option = "--num-gpus" if asked.num_gpus is not None else "--num-processes"
    here = asked.num_gpus if asked.num_gpus is not None else asked.num_processes
    if here is not None and processes.total not in (None, here * nodes):
        on_all = f" on each of {nodes} machines" if nodes > 1 else ""
        yield _problem(reading, "num_processes", f"`{option} {here}`{on_all}")
    elif here is None and processes.total is not None and processes.total % nodes:
        yield _problem(reading, "num_processes", f"{nodes} machines, which cannot share them evenly")
    if asked.num_gpus is not None and processes.cpu:
        yield _problem(reading, "use_cpu", f"`--num-gpus {asked.num_gpus}`")
    mine = _rendezvous(processes)
    if asked.rendezvous is not None and nodes > 1 and mine not in (None, asked.rendezvous):
        yield _problem(reading, "main_process_ip", f"`--rendezvous {asked.rendezvous}` (the file says {mine})")
    visible = read_visible_devices()
    if processes.gpu_ids is not None and visible not in (None, processes.gpu_ids):
        yield _problem(reading, "gpu_ids", f"CUDA_VISIBLE_DEVICES={visible}")


def _problem(reading: Reading, key: str, other: str) -> Problem:
    return reading.source.place((key,)).problem(
        "L185", f"`{reading.name(key)}` in {reading.source.title}, and {other} on the command line",
        hint="leave one of them out",
    )  # fmt: skip
