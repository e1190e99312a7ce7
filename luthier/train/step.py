"""One update, from top to bottom.

The loss of a step is a sum over every trained token of every micro-batch of every process,
divided by the sum of their weights:  L = sum_i w_i nll_i / sum_i w_i. The divisor is known
before the first forward pass, so each micro-batch contributes its share and the gradients just
add up. DistributedDataParallel averages gradients over processes; multiplying by their number
turns that back into a sum.

A step that is not finite never reaches the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.fast.engine import Engine
from luthier.runtime.errors import RunFailed
from luthier.train.feed import MicroBatch
from luthier.train.masters import Weights
from luthier.train.nonfinite import report_non_finite
from luthier.train.schedule import Schedule
from luthier.train.seeds import seed_micro_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Abandoned", "Trainer", "Update", "all_sum", "update"]


class Abandoned(Exception):
    """The step was given up before it changed anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Everything an update works with; made once by `setup.py`."""

    accelerator: Accelerator
    engine: Engine
    wrapper: nn.Module
    """What the loss runs through: DistributedDataParallel, or the engine's own module."""
    weights: Weights
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    max_grad_norm: float
    label_smoothing: float
    seed: int

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one step did, summed over all processes; the same on each."""

    loss_sum: float
    weight_sum: float
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """The rate this step used."""
    correct: int
    """Targets that were the model's first choice."""
    tokens: int
    trained_tokens: int
    stop: bool
    """Some process was asked to stop."""

    @property
    def loss(self) -> float:
        """Mean loss of a trained token, by weight."""
        return self.loss_sum / self.weight_sum


def update(
    trainer: Trainer, micro_batches: Sequence[MicroBatch], *, step: int, stop_requested: Callable[[], bool]
) -> Update:
    """Run optimizer step `step` (from 0) over this process' micro-batches.

    Raises:
        RunFailed: loss or gradient is not finite on some process, or nothing has weight; nothing was updated.
        Abandoned: a stop was asked for before the last micro-batch (one process only); nothing was updated.
    """
    # 1. How much does the whole step weigh?
    weight_sum = all_sum(trainer, [math.fsum(item.batch.weight_sum for item in micro_batches)])[0]
    if not weight_sum > 0.0:
        raise RunFailed(code="T411", message=f"the rows of step {step + 1} have a total loss weight of {weight_sum}")
    scale = trainer.world_size / weight_sum

    # 2. Gradients of all micro-batches add up; processes exchange them once, at the last.
    losses: list[Tensor] = []
    corrects: list[Tensor] = []
    for item in micro_batches:
        if stop_requested() and trainer.world_size == 1:
            trainer.weights.zero_grad()
            raise Abandoned
        seed_micro_batch(seed=trainer.seed, step=step, micro_batch=item.index, rank=trainer.accelerator.process_index)
        batch = item.batch.to(trainer.accelerator.device)
        with _gradient_exchange(trainer, last=item.index == len(micro_batches) - 1):
            sums = trainer.engine.loss(batch, label_smoothing=trainer.label_smoothing)
            (sums.loss * scale).backward()
        losses.append(sums.loss.detach())
        corrects.append(sums.correct)
    trainer.weights.average_over_processes(trainer.accelerator)

    # 3. Norm of the whole gradient, and the sums of all processes.
    norm = torch.nn.utils.get_total_norm(trainer.weights.gradients())
    grad_norm = float(norm)
    loss_per_micro_batch = torch.stack(losses).tolist()
    finite = all(map(math.isfinite, [grad_norm, *loss_per_micro_batch]))
    loss_sum, correct, tokens, trained_tokens, stop, not_finite = all_sum(trainer, [
        math.fsum(loss_per_micro_batch) if finite else 0.0, float(torch.stack(corrects).sum()),
        sum(item.batch.tokens for item in micro_batches), sum(item.batch.trained_tokens for item in micro_batches),
        float(stop_requested()), float(not finite),
    ])  # fmt: skip

    # 4. Not finite anywhere: stop before the update, and say which rows.
    if not_finite:
        report_non_finite(trainer, micro_batches, step=step)

    # 5. Clip, set the rate of this step, update, round masters into the weights.
    if trainer.max_grad_norm > 0.0:
        torch.nn.utils.clip_grads_with_norm_(trainer.weights.tensors.values(), trainer.max_grad_norm, norm)
    learning_rate = trainer.schedule.set(step)
    trainer.optimizer.step()
    trainer.weights.publish()
    trainer.weights.zero_grad()
    return Update(
        loss_sum=loss_sum, weight_sum=weight_sum, grad_norm=grad_norm, learning_rate=learning_rate,
        correct=round(correct), tokens=round(tokens), trained_tokens=round(trained_tokens), stop=stop > 0.0,
    )  # fmt: skip


def all_sum(trainer: Trainer, values: Sequence[float]) -> list[float]:
    """Each value summed over all processes, in float64; without communication when there is one."""
    if trainer.world_size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=trainer.accelerator.device)
    summed: list[float] = trainer.accelerator.reduce(tensor, reduction="sum").tolist()
    return summed


def _gradient_exchange(trainer: Trainer, *, last: bool) -> AbstractContextManager[None]:
    """DDP exchanges gradients in the last backward pass; masters are summed afterwards, in fp32."""
    if trainer.world_size == 1 or (last and not trainer.weights.masters):
        return nullcontext()
    context: AbstractContextManager[None] = trainer.accelerator.no_sync(trainer.wrapper)
    return context
