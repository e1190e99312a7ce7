"""Validation loss: every held-out token once, whatever the batch size and the number of processes.

It is sum(weight x nll) / sum(weight) over the whole set. Batches only group the documents; a
mean of batch means would depend on the grouping (5.277, 5.267, 5.261 at batch 1, 8, 64 in one
stack). No dropout, no noise, no label smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from luthier.data.branches import collate_rows
from luthier.data.types import TrainRow
from luthier.runtime.console import progress
from luthier.runtime.errors import RunFailed
from luthier.train.feed import by_token_budget
from luthier.train.step import Abandoned, Trainer, all_sum

__all__ = ["Validation", "validate"]

WORTH_A_BAR = 20  # batches; fewer are over before a bar can be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Loss over the held-out rows."""

    loss: float
    """Nats per trained token, by weight."""
    token_accuracy: float
    trained_tokens: int


def validate(
    trainer: Trainer, examples: Sequence[TrainRow], *, tokens_per_batch: int, step: int, abandon: Callable[[], bool]
) -> Validation:
    """Measure the loss on `examples` after `step` steps; the model is left in training mode.

    Raises:
        RunFailed: the loss is not finite.
        Abandoned: `abandon` said so between two batches.
    """
    # Not through DDP's wrapper: processes have different numbers of batches and nothing to exchange.
    module = trainer.engine.module
    groups = list(by_token_budget(examples, tokens_per_batch))
    mine = groups[trainer.accelerator.process_index :: trainer.world_size]
    losses, weights, correct, trained = [], [], [], 0
    shown = progress("validation", len(mine), "batches") if len(mine) >= WORTH_A_BAR else nullcontext()
    with _evaluating(module), torch.no_grad(), shown as bar:
        for group in mine:
            if abandon():
                raise Abandoned
            batch = collate_rows(group)
            loss_sum, right = module(batch.to(trainer.accelerator.device))
            losses.append(loss_sum)
            correct.append(right)
            weights.append(batch.weight_sum)
            trained += batch.trained_tokens
            if bar is not None:
                bar.advance()
    sums = [
        math.fsum(torch.stack(losses).tolist()) if losses else 0.0, math.fsum(weights),
        float(torch.stack(correct).sum()) if correct else 0.0, float(trained),
    ]  # fmt: skip
    total_loss, weight_sum, hits, total = all_sum(trainer, sums)
    loss = total_loss / weight_sum if weight_sum > 0.0 else math.nan
    if not math.isfinite(loss):
        raise RunFailed(
            code="T412",
            message=f"the validation loss after step {step} is {loss} over {round(total)} trained tokens",
            hint="lower `train.learning_rate`, or check the validation rows with `luthier data show`",
        )
    return Validation(loss=loss, token_accuracy=hits / total, trained_tokens=round(total))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout and noise off inside; training mode afterwards."""
    module.eval()
    try:
        yield
    finally:
        module.train()
