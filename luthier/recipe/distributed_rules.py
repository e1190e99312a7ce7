"""What sharded weights (`distributed.strategy: fsdp2`) cannot be combined with so far, and why."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.names import takes_from_base
from luthier.recipe.offload_rules import offload_rules
from luthier.recipe.packed_rules import why_not_packed
from luthier.recipe.positions import Locate
from luthier.recipe.schema import DistributedSection, MethodSection, ModelSection, ObjectiveSection, TrainSection
from luthier.recipe.zero_rules import zero_rules
from luthier.runtime.errors import Problem

__all__ = ["SHARDABLE_OPTIMIZERS", "distributed_rules", "why_not_sharded"]

SHARDABLE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Values of `train.optim` whose update of a number depends on that number alone, so that each shard has its own."""


def why_not_sharded(
    model: ModelSection, method: MethodSection, objective: ObjectiveSection, train: TrainSection
) -> Iterator[tuple[str, str]]:
    """(key, reason) of everything in a recipe that shards cannot be combined with."""
    if objective.name != "sft":
        yield ("objective.name", f"objective {objective.name} makes passes that its processes do not make together")
    if method.name in ("full", "freeze", "spectrum"):
        if train.optim not in SHARDABLE_OPTIMIZERS:
            yield ("train.optim", f"{train.optim} needs whole matrices; shards take {', '.join(SHARDABLE_OPTIMIZERS)}")
    else:
        if method.modules_to_save:
            yield ("method.modules_to_save", "modules trained in full beside adapters were not tried in shards")
        if method.use_dora or takes_from_base(method.init_lora_weights):
            yield ("method.use_dora" if method.use_dora else "method.init_lora_weights",
                   "adapters that read the base's weights need them whole")  # fmt: skip
    if model.new_tokens:
        yield ("model.new_tokens", "rows of new tokens were not tried in shards")
    yield from why_not_packed(model, method, objective)


def distributed_rules(
    section: DistributedSection, model: ModelSection, method: MethodSection, objective: ObjectiveSection,
    train: TrainSection, locate: Locate,
) -> Iterator[Problem]:  # fmt: skip
    """Refused combinations, by name."""
    yield from zero_rules(section, model, method, objective, train, locate)
    for key, default in (("sequence_parallel_size", 1),):
        if getattr(section, key) != default:
            yield locate(f"distributed.{key}").problem("L110", f"`distributed.{key}` is not built", hint="remove it")
    yield from offload_rules(section, method, train, locate)
    if section.strategy == "fsdp2":
        for key, reason in why_not_sharded(model, method, objective, train):
            message = f"`distributed.strategy: fsdp2` beside `{key}`: {reason}"
            yield locate("distributed.strategy").problem("L112", message, hint="write ddp or auto, or change that key")
    if section.strategy == "ddp" and not section.reshard_after_forward:
        key = "distributed.reshard_after_forward"
        message = f"`{key}` would have no effect: `distributed.strategy` is ddp"
        yield locate(key, on="key").problem("C111", message, hint="remove it")
