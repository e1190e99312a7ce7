"""What sharded weights (`distributed.strategy: fsdp2`) cannot be combined with so far, and why."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.deepspeed_keys import ZERO
from luthier.recipe.offload_rules import offload_rules
from luthier.recipe.packed_rules import why_not_packed
from luthier.recipe.positions import Locate
from luthier.recipe.replicate_rules import replicate_rules
from luthier.recipe.schema import DistributedSection, MethodSection, ModelSection, ObjectiveSection, TrainSection
from luthier.recipe.zero_rules import zero_rules
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["SHARDABLE_OPTIMIZERS", "distributed_rules", "require_groups", "why_not_sharded"]

SHARDABLE_OPTIMIZERS = (
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "sgd", "adagrad", "rmsprop", "lion_32bit",
)  # fmt: skip
"""Values of `train.optim` whose update of a number depends on that number alone, so that each shard has its own; of
`adamw_8bit` on its block of 256, and shards that are no whole blocks have moments in fp32."""
_WHOLE_MATRICES = ("adafactor", "muon", "stable_adamw")


def _why_not_optimizer(optim: str) -> str:
    if optim in _WHOLE_MATRICES:
        why = "needs whole matrices, of which a process holds some rows"
    elif "8bit" in optim:
        why = "has bitsandbytes' blocks, which would be those of each shard, so its state would hang on their number"
    else:
        why = "was not tried on shards"
    return f"{optim} {why}; shards take {', '.join(SHARDABLE_OPTIMIZERS)}"


def why_not_sharded(
    model: ModelSection, method: MethodSection, objective: ObjectiveSection, train: TrainSection
) -> Iterator[tuple[str, str]]:
    """(key, reason) of everything in a recipe that shards cannot be combined with."""
    if method.name in ("full", "freeze", "spectrum") and train.optim not in SHARDABLE_OPTIMIZERS:
        yield ("train.optim", _why_not_optimizer(train.optim))
    yield from why_not_packed(model, method, objective)


def distributed_rules(
    section: DistributedSection, model: ModelSection, method: MethodSection, objective: ObjectiveSection,
    train: TrainSection, locate: Locate,
) -> Iterator[Problem]:  # fmt: skip
    """Refused combinations, by name."""
    if objective.name == "grpo":
        yield from _online_rules(section, locate)
    yield from zero_rules(section, model, method, objective, train, locate)
    yield from offload_rules(section, method, objective, train, locate)
    yield from replicate_rules(section, locate)
    yield from _sequence_rules(section, objective, locate)
    if section.strategy == "fsdp2":
        for key, reason in why_not_sharded(model, method, objective, train):
            message = f"`distributed.strategy: fsdp2` beside `{key}`: {reason}"
            yield locate("distributed.strategy").problem("L112", message, hint="write ddp or auto, or change that key")
    if section.strategy == "ddp" and not section.reshard_after_forward:
        key = "distributed.reshard_after_forward"
        message = f"`{key}` would have no effect: `distributed.strategy` is ddp"
        yield locate(key, on="key").problem("C111", message, hint="remove it")


def _online_rules(section: DistributedSection, locate: Locate) -> Iterator[Problem]:
    """TRL's trainer copies the model."""
    if section.strategy in ("fsdp2", *ZERO):
        message = (
            f"`distributed.strategy: {section.strategy}` beside objective grpo: its processes copy the model so far"
        )
        yield locate("distributed.strategy").problem("L323", message, hint="write ddp or auto")
    elif section.strategy == "auto" and section.dp_replicate_size > 1:
        message = "`distributed.dp_replicate_size` is of copies in shards, and objective grpo shards nothing"
        yield locate("distributed.dp_replicate_size").problem("L323", message, hint="remove it")


def require_groups(size: int, processes: int) -> None:
    """Return if `processes` can be divided into groups of `size` that share each sequence.

    Raises:
        RecipeError: they cannot.
    """
    if processes % size:
        raise RecipeError(
            code="L230",
            message=f"`distributed.sequence_parallel_size: {size}` does not divide {processes} processes",
            hint=f"start a multiple of {size} processes (`luthier launch`), or change it; 1 shares no sequence",
        )


def _sequence_rules(section: DistributedSection, objective: ObjectiveSection, locate: Locate) -> Iterator[Problem]:
    key, size = "distributed.sequence_parallel_size", section.sequence_parallel_size
    if size == 1:
        return
    if objective.name != "sft":
        yield locate(key).problem(
            "L231", f"`{key}: {size}` beside objective {objective.name}: only sft's sequences can be shared",
            hint="remove it",
        )  # fmt: skip
    if section.strategy in ZERO:
        yield locate(key).problem(
            "L231", f"`{key}: {size}` beside `distributed.strategy: {section.strategy}`",
            hint="write fsdp2 or ddp",
        )  # fmt: skip
