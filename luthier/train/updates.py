"""The recipe's optimizer and schedule over the tensors that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.fast.kernels.maps8 import BLOCK
from luthier.recipe.schema import TrainSection
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError
from luthier.train.adamw8 import SMALLEST
from luthier.train.distributed.sharded_weights import ShardedWeights
from luthier.train.masters import Weights
from luthier.train.optim import expected_state_bytes, make_optimizer
from luthier.train.rates import peak_rates, rate_lines, table_tensors
from luthier.train.schedule import Schedule, warmup_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fresh_optimizer", "optimizer_over", "say_rates", "schedule_of", "state_bytes"]


def fresh_optimizer(
    model: PreTrainedModel, weights: Weights, train: TrainSection, *, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer, without a state, at the rates of `train`; `device` computes, None: that of the weights.

    Raises:
        RecipeError: the learning rate is still `auto`, or a rate is given for tensors of which none is trained.
    """
    return optimizer_over(model, weights.tensors, train, in_8_bits=_in_8_bits(weights), device=device)


def optimizer_over(
    model: PreTrainedModel, tensors: Mapping[str, nn.Parameter], train: TrainSection, *, own_kernel: bool = True,
    in_8_bits: list[str] | None = None, device: torch.device | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """The recipe's optimizer over trained tensors by name, in groups of one decay and one rate."""
    return make_optimizer(
        tensors, train, learning_rate=_rate(train), rates=_rates(model, tensors, train),
        tables=_tables(model, tensors), own_kernel=own_kernel, in_8_bits=in_8_bits, device=device,
    )  # fmt: skip


def schedule_of(optimizer: torch.optim.Optimizer, train: TrainSection, total_steps: int) -> Schedule:
    """The recipe's schedule over the groups of an optimizer."""
    return Schedule(
        optimizer, name=train.lr_scheduler_type, warmup=warmup_steps(train, total_steps), total_steps=total_steps,
        settings=train.lr_scheduler_kwargs,
    )  # fmt: skip


def _in_8_bits(weights: Weights) -> list[str] | None:
    """Names of the tensors whose moments an 8-bit optimizer of ours keeps in 8 bits; None: it decides by size."""
    if not isinstance(weights, ShardedWeights):
        return None
    return weights.in_8_bits(smallest=SMALLEST, block=BLOCK)


def _rate(train: TrainSection) -> float:
    if not isinstance(train.learning_rate, float | int):
        raise RecipeError(code="T470", message="the recipe was not resolved: `train.learning_rate` is still `auto`")
    return float(train.learning_rate)


def _rates(model: PreTrainedModel, tensors: Mapping[str, nn.Parameter], train: TrainSection) -> dict[str, float]:
    return peak_rates(model, tensors, train, rate=_rate(train))


def _tables(model: PreTrainedModel, tensors: Mapping[str, nn.Parameter]) -> frozenset[str]:
    return frozenset().union(*table_tensors(model, tensors))


def state_bytes(model: PreTrainedModel, weights: Weights, train: TrainSection) -> int:
    """What the optimizer's state will take once it is there."""
    return expected_state_bytes(
        weights.tensors, train.optim, train.optim_args, tables=_tables(model, weights.tensors),
        in_8_bits=_in_8_bits(weights),
    )  # fmt: skip


def say_rates(model: PreTrainedModel, tensors: Mapping[str, nn.Parameter], train: TrainSection) -> None:
    """Print the groups of rates.

    Raises:
        RecipeError: nothing is trained.
    """
    if not tensors:
        raise RecipeError(code="T472", message="no weight is trained", hint="see `method` in the recipe")
    for line in rate_lines(tensors, _rates(model, tensors, train)):
        note(f"  {line}")
