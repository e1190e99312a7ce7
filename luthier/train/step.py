"""One update, from top to bottom.

The loss of a step is a sum over every trained token of every micro-batch of every process,
divided by the sum of their weights:  L = sum_i w_i nll_i / sum_i w_i. Over preferences it is a
sum over rows, divided by their number. The divisor is known
before the first forward pass, so each micro-batch contributes its share and the gradients just
add up. Processes average their gradients after their last micro-batch; multiplying by their
number turns that back into a sum.

The host waits for the device once a step: norm, losses and counts come in one transfer. A step
that is not finite never reaches the weights, and one that ran out of memory never happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.fast.engine import Engine
from luthier.objective.base import Objective
from luthier.runtime.errors import RunFailed
from luthier.runtime.heartbeat import mark
from luthier.train.counts import names_of
from luthier.train.distributed.roll_call import GivenUp
from luthier.train.feed import MicroBatch
from luthier.train.kl import reference_point
from luthier.train.masters import Weights
from luthier.train.nonfinite import report_non_finite
from luthier.train.schedule import Schedule
from luthier.train.seeds import seed_micro_batch
from luthier.train.split import agreeing, agrees, require_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Abandoned", "Trainer", "Update", "all_sum", "forward_backward", "update"]


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
    """Of the cross-entropy; an objective over preferences has its own."""
    seed: int
    moments: int = 0
    """Bytes of the optimizer's state after its first step, by formula."""
    objective: Objective | None = None
    """What is minimised over preferences; None: cross-entropy of the trained tokens."""
    parts: int = 1
    """Processes that share each sequence."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def dealt(self) -> tuple[int, int]:
        """(group of this process, number of groups) of those that sequences are dealt to."""
        return int(self.accelerator.process_index) // self.parts, self.world_size // self.parts

    @property
    def dealt_to(self) -> str:
        """Those that sequences are dealt to, in words."""
        count = self.dealt[1]
        if self.parts == 1:
            return f"{count} processes"
        return f"{count} group{'s' if count > 1 else ''} of {self.parts} processes"

    @property
    def part(self) -> int:
        """Which part of its group's sequences this process has."""
        return int(self.accelerator.process_index) % self.parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one step did, summed over all processes; the same on each."""

    loss_sum: float
    weight_sum: float
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """The rate this step used."""
    sums: dict[str, float]
    """What `counts.py` reports from: targets that were the model's first choice, or the sums of the objective."""
    tokens: int
    trained_tokens: int
    stop: bool
    """Some process was asked to stop."""

    @property
    def loss(self) -> float:
        """Mean loss of a trained token, by weight; of a row of preferences."""
        return self.loss_sum / self.weight_sum


def update(
    trainer: Trainer, micro_batches: Sequence[MicroBatch], *, step: int, stop_requested: Callable[[], bool]
) -> Update:
    """Run optimizer step `step` (from 0) over this process' micro-batches.

    Raises:
        RunFailed: loss or gradient is not finite on some process, or nothing has weight; nothing was updated.
        TooLarge: a micro-batch did not fit into the memory of some process; nothing was updated.
        Abandoned: a stop was asked for before the last micro-batch (one process only); nothing was updated.
    """
    # 1. How much does the whole step weigh?
    mark("weigh the step", step=step, exchange=True)
    weight_sum = all_sum(trainer, [math.fsum(item.batch.weight_sum for item in micro_batches)])[0]
    if not weight_sum > 0.0:
        raise RunFailed(code="T411", message=f"the rows of step {step + 1} have a total loss weight of {weight_sum}")
    scale = trainer.world_size / weight_sum

    # 2. What an objective must know of the whole step beforehand (`kl.py`); 0 for most.
    kl = reference_point(trainer, micro_batches)

    # 3. Gradients of all micro-batches add up. If one does not fit into memory, all of the step is given up.
    losses, counts = _add_up(trainer, micro_batches, step=step, scale=scale, kl=kl, stop_requested=stop_requested)
    mark("average gradients", step=step, exchange=True)
    trainer.weights.average_over_processes(trainer.accelerator)

    # 4. The rate of this step; the update itself, if it need not wait for what the host has to know.
    learning_rate = trainer.schedule.set(step)
    names = names_of(trainer.objective)
    counted = _counted(trainer, losses, [sums[name] for name in names for sums in counts])
    ahead = trainer.world_size == 1 and trainer.weights.applies_ahead(trainer.optimizer)
    if ahead:
        trainer.weights.apply(trainer.optimizer, scale=_clipping_ahead(counted, len(losses), trainer.max_grad_norm))

    # 5. Norm of the whole gradient and what the device counted, in one transfer; then the sums of all processes.
    grad_norm, *rest = counted.tolist()
    loss_per_micro_batch, here = rest[: len(losses)], rest[len(losses) :]
    passes = len(losses)
    sums_here = [math.fsum(here[place * passes : (place + 1) * passes]) for place in range(len(names))]
    mark("sum over processes", step=step, exchange=True)
    finite = all(map(math.isfinite, [grad_norm, *loss_per_micro_batch]))
    loss_sum, squares, tokens, trained_tokens, stop, not_finite, *all_sums = all_sum(trainer, [
        math.fsum(loss_per_micro_batch) if finite else 0.0,
        grad_norm**2 / trainer.weights.copies if finite and trainer.weights.norm_in_parts else 0.0,
        sum(item.batch.tokens for item in micro_batches), sum(item.batch.trained_tokens for item in micro_batches),
        float(stop_requested()), float(not finite), *sums_here,
    ])  # fmt: skip

    if trainer.weights.norm_in_parts:
        grad_norm = math.sqrt(squares)  # each process has the norm of its shards; copies count once

    # 6. Not finite anywhere: nothing was updated; stop, and say which rows.
    if not_finite:
        report_non_finite(trainer, micro_batches, step=step)

    # 7. Clip, update, round masters into the weights.
    mark("update", step=step)
    if not ahead:
        trainer.weights.apply(trainer.optimizer, scale=_clipping(grad_norm, trainer.max_grad_norm))
    return Update(
        loss_sum=loss_sum, weight_sum=weight_sum, grad_norm=grad_norm, learning_rate=learning_rate,
        sums=dict(zip(names, all_sums, strict=True)), tokens=round(tokens), trained_tokens=round(trained_tokens),
        stop=stop > 0.0,
    )  # fmt: skip


def _add_up(
    trainer: Trainer, micro_batches: Sequence[MicroBatch], *, step: int, scale: float, kl: float,
    stop_requested: Callable[[], bool],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:  # fmt: skip
    """(loss sum, other sums) of each micro-batch, on the device, when all passes are over.

    Raises:
        TooLarge, Abandoned: see `update`.
    """
    mark("forward and backward", step=step)
    trainer.weights.begin(passes=len(micro_batches), processes=trainer.world_size)
    losses: list[Tensor] = []
    counts: list[dict[str, Tensor]] = []
    too_large, given_up = None, False
    for item in micro_batches:
        if stop_requested() and trainer.world_size == 1:
            trainer.weights.zero_grad()
            raise Abandoned
        try:
            loss, sums = forward_backward(trainer, item, step=step, scale=scale, kl=kl)
        except torch.OutOfMemoryError:
            if not agrees(trainer):
                raise  # the others are in the middle of this pass and cannot give it up
            too_large = item
            break
        except GivenUp:
            given_up = True
            break
        losses.append(loss)
        counts.append(sums)
    mark("compare memory", step=step, exchange=True)
    if agrees(trainer):
        require_memory(trainer, too_large, given_up=given_up)
    return losses, counts


def forward_backward(
    trainer: Trainer, item: MicroBatch, *, step: int, scale: float, kl: float = 0.0, trial: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add one micro-batch's share to the gradients; returns (loss sum, other sums), still on the device.

    `trial`: see `split.agrees`.

    Raises:
        GivenUp: another process could not, which this one learnt in the middle of the pass.
    """
    seed_micro_batch(seed=trainer.seed, step=step, micro_batch=item.index, rank=trainer.accelerator.process_index)
    batch = item.batch.to(trainer.accelerator.device)
    # Never DDP's exchange in the middle of a backward pass: a process without memory could not take part in it.
    apart = trainer.accelerator.no_sync(trainer.wrapper) if trainer.world_size > 1 else nullcontext()
    with apart, agreeing(trainer, trial=trial):
        sums = trainer.engine.loss(batch, label_smoothing=trainer.label_smoothing, kl=kl)
        trainer.weights.backward(sums.loss * scale)
    trainer.weights.collect()
    return sums.loss.detach(), sums.sums


def all_sum(trainer: Trainer, values: Sequence[float]) -> list[float]:
    """Each value summed over all processes, in float64; without communication when there is one."""
    if trainer.world_size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=trainer.accelerator.device)
    summed: list[float] = trainer.accelerator.reduce(tensor, reduction="sum").tolist()
    return summed


def _counted(trainer: Trainer, losses: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """(norm of the gradient, loss of each micro-batch, other sums), on the device."""
    found = trainer.weights.norm()
    norm = torch.zeros_like(losses[0]) if found is None else found
    # float64 holds every count exactly; MPS has none, and no micro-batch of 2^24 tokens either.
    kind = torch.float32 if norm.device.type == "mps" else torch.float64
    place = losses[0].device if losses else norm.device  # gradients may be in host memory
    return torch.stack([value.to(place, kind) for value in (norm, *losses, *counts)])


def _clipping_ahead(counted: Tensor, losses: int, max_grad_norm: float) -> Tensor:
    """`_clipping` on the device, fp32; NaN if the norm or a loss is not finite, which stops the update."""
    norm = counted[0]
    scale = torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0) if max_grad_norm > 0.0 else torch.ones_like(norm)
    return torch.where(torch.isfinite(counted[: 1 + losses]).all(), scale, torch.nan).float()


def _clipping(grad_norm: float, max_grad_norm: float) -> float:
    """What the gradients are multiplied by: 1, or max_grad_norm / (norm + 1e-6) as torch's clip_grad_norm_ has it."""
    return min(1.0, max_grad_norm / (grad_norm + 1e-6)) if max_grad_norm > 0.0 else 1.0
