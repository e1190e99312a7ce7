"""Validation loss: every held-out token once, whatever the batch size and the number of processes.

It is sum(weight x nll) / sum(weight) over the whole set. Batches only group the documents; a
mean of batch means would depend on the grouping (5.277, 5.267, 5.261 at batch 1, 8, 64 in one
stack). No dropout, no noise, no label smoothing of the cross-entropy. Over preferences it is the
mean over the held-out rows of the objective's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from luthier.data.branches import collate_rows
from luthier.data.sequence_parts import take_part
from luthier.data.types import TrainRow
from luthier.runtime.console import progress
from luthier.runtime.errors import RunFailed
from luthier.train.counts import names_of, report
from luthier.train.feed import by_token_budget, without_weight
from luthier.train.kl import log_ratio_sum, mean_over_processes
from luthier.train.mismatched import Mismatched, partners
from luthier.train.passes import dealt
from luthier.train.step import Abandoned, Trainer, all_sum

__all__ = ["Validation", "validate"]

WORTH_A_BAR = 20  # batches; fewer are over before a bar can be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Loss over the held-out rows."""

    loss: float
    """Nats per trained token, by weight; of preferences the mean loss of a row."""
    metrics: dict[str, float]
    """By name, as in training (`counts.py`)."""
    trained_tokens: int


def validate(
    trainer: Trainer,
    examples: Sequence[TrainRow],
    *,
    tokens_per_batch: int,
    step: int,
    abandon: Callable[[], bool],
    mismatched: Mismatched | None = None,
) -> Validation:
    """Measure the loss on `examples` after `step` steps; the model is left in training mode.

    `mismatched` are answers behind the prompts of other held-out rows, for an objective that asks for them.

    Raises:
        RunFailed: the loss is not finite.
        Abandoned: `abandon` said so between two batches.
    """
    # Not through DDP's wrapper: processes have different numbers of batches and nothing to exchange.
    module = trainer.engine.alone
    groups = list(by_token_budget(examples, tokens_per_batch))
    mine, more = dealt(trainer, groups)
    kl = _reference_point(trainer, len(examples), mismatched, tokens_per_batch)
    names = names_of(trainer.objective)
    losses, weights, counts, trained = [], [], [], 0
    shown = progress("validation", len(mine), "batches") if len(mine) >= WORTH_A_BAR else nullcontext()
    with _evaluating(trainer.engine.module), torch.no_grad(), shown as bar:
        for group in mine:
            if abandon():
                raise Abandoned
            batch = take_part(collate_rows(group), index=trainer.part, size=trainer.parts)
            loss_sum, sums = module(batch.to(trainer.accelerator.device), kl=kl)
            losses.append(loss_sum)
            counts.append(torch.stack([sums[name].float() for name in names]))
            weights.append(batch.weight_sum)
            trained += batch.trained_tokens
            if bar is not None:
                bar.advance()
        for _ in range(more):
            shortest = without_weight(collate_rows([min(examples, key=len)]))
            batch = take_part(shortest, index=trainer.part, size=trainer.parts)
            module(batch.to(trainer.accelerator.device), kl=kl)
    columns = zip(*torch.stack(counts).tolist(), strict=True) if counts else ([] for _ in names)
    total_loss, weight_sum, total, *found = all_sum(trainer, [
        math.fsum(torch.stack(losses).tolist()) if losses else 0.0, math.fsum(weights), float(trained),
        *(math.fsum(column) for column in columns),
    ])  # fmt: skip
    loss = total_loss / weight_sum if weight_sum > 0.0 else math.nan
    if not math.isfinite(loss):
        raise RunFailed(
            code="T412",
            message=f"the validation loss after step {step} is {loss} over {round(total)} trained tokens",
            hint="lower `train.learning_rate`, or check the validation rows with `luthier data show`",
        )
    metrics = report(trainer.objective, dict(zip(names, found, strict=True)), trained_tokens=round(total))
    return Validation(loss=loss, metrics=metrics, trained_tokens=round(total))


def _reference_point(trainer: Trainer, rows: int, mismatched: Mismatched | None, tokens_per_batch: int) -> float:
    """z0 over the whole held-out set (`kl.py`); 0 where there is none."""
    if mismatched is None:
        return 0.0
    pairs = partners(range(rows))
    per_batch = max(1, tokens_per_batch // mismatched.max_length)
    mine, more = dealt(trainer, [pairs[start : start + per_batch] for start in range(0, len(pairs), per_batch)])
    total = log_ratio_sum(trainer, map(mismatched.batch, mine))
    log_ratio_sum(trainer, [mismatched.batch(pairs[:1])] * more)
    return mean_over_processes(trainer, total, sum(map(len, mine)))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout and noise off inside; training mode afterwards."""
    module.eval()
    try:
        yield
    finally:
        module.train()
