"""What `distributed.offload` cannot be combined with, and why; DeepSpeed has its own."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.deepspeed_keys import ZERO
from luthier.recipe.positions import Locate
from luthier.recipe.schema import DistributedSection, MethodSection, ObjectiveSection, TrainSection
from luthier.runtime.errors import Problem

__all__ = ["HOST_OPTIMIZERS", "offload_rules"]

HOST_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "sgd")
"""Values of `train.optim` whose update goes shard by shard, with masters and states in host memory."""


def offload_rules(
    section: DistributedSection, method: MethodSection, objective: ObjectiveSection, train: TrainSection, locate: Locate
) -> Iterator[Problem]:
    """Refused combinations, by name. What the number of processes decides is asked by the run (L241)."""
    if section.offload == "none":
        return
    where, value = locate("distributed.offload"), f"`distributed.offload: {section.offload}`"
    if objective.name == "grpo":
        yield where.problem("L240", f"{value} beside objective grpo: TRL's trainer would not read it", hint="remove it")
        return
    if section.strategy in ZERO:
        return
    if section.strategy == "ddp" and section.offload == "all":
        message = f"{value} keeps shards in host memory, and `distributed.strategy: ddp` has none"
        yield where.problem("L240", message, hint="write fsdp2, or offload optimizer in one process")
    if method.name not in ("full", "freeze", "spectrum"):
        if section.offload == "optimizer":
            message = f"{value} beside `method.name: {method.name}`: adapters and their state are small and stay"
            yield where.problem("L240", message, hint="offload all keeps the shards of the base in host memory")
    elif train.optim not in HOST_OPTIMIZERS:
        names = ", ".join(HOST_OPTIMIZERS)
        message = f"{value} beside `train.optim: {train.optim}`: what is in host memory is updated by {names}"
        yield where.problem("L240", message, hint="adamw_torch_fused")
