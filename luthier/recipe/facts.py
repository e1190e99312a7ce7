"""What a recipe cannot know, and what the plan decided from it. `resolve` turns both into values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.recipe.positions import Place

__all__ = ["Decision", "Facts", "FoundRate", "Taken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the plan chose (`plan/search.py`); none of it changes what a step computes."""

    micro_batch_tokens: int
    """Most tokens of a micro-batch on one device; on all devices that share a sequence, where some do."""
    recompute: bool | Literal["selective"]
    """`train.gradient_checkpointing`."""
    recompute_layers: int | None
    """`train.gradient_checkpointing_layers`."""
    dequantize_base: bool
    """`model.dequantize_base`; False unless the base is nf4."""
    recompute_attention: bool | int = True
    """`train.gradient_checkpointing_attention`."""
    strategy: Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"] = "ddp"
    """`distributed.strategy`."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """`distributed.offload`."""
    sequence_parallel_size: int = 1
    """`distributed.sequence_parallel_size`."""
    dp_replicate_size: int = 1
    """`distributed.dp_replicate_size`."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why, by key of the recipe (`train.per_device_train_batch_size` for the micro-batch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRate:
    """A learning rate that `luthier lr-find` found for the same base, data, method and objective."""

    learning_rate: float
    tokens_per_step: int
    found_at: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A value of the recipe that another configuration of the user said (`recipe/accelerate`)."""

    key: str
    """Dotted, `distributed.strategy`."""
    value: Any
    reason: str
    """File or variable, and what stands there."""
    place: Place = field(default_factory=Place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a recipe cannot know: the device, the data after preparation, the model."""

    device_type: str
    """`cpu`, `cuda` or `mps`."""
    native_bf16: bool
    device_memory_bytes: int
    """Of one device; of the host for a CPU."""
    world_size: int
    rows: int
    """Training rows that are used."""
    sequences: int
    """Packs of an epoch; rows without packing."""
    tokens: int
    """Of an epoch, without padding."""
    model_parameters: int
    found_rates: tuple[FoundRate, ...] = ()
    """What searches found for this training; `auto` mentions them and keeps to its rule."""
    taken: tuple[Taken, ...] = ()
    """What the recipe has from a configuration of accelerate, for the reasons."""
    planned: Decision | None = None
    """None: there is no plan (a CPU, or an unknown model); rules of thumb stand in for it."""

    def __post_init__(self) -> None:
        for name in ("world_size", "rows", "sequences", "tokens", "model_parameters"):
            assert getattr(self, name) > 0, f"{name} must be positive"

    @property
    def mean_tokens(self) -> float:
        """Tokens of a sequence."""
        return self.tokens / self.sequences
