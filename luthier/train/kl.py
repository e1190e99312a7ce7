"""KTO's reference point: how far the model has moved from the reference, measured on the answers of other rows.

z0 = max(0, mean of log pi(y'|x) - log pi_ref(y'|x)) over all rows of the step, y' the answer of the row before
(`objective/kto.py`). One number for all micro-batches and processes, so it comes from a pass of its own before the
gradients: no gradient, no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from luthier.train.split import require_memory

if TYPE_CHECKING:
    from luthier.data.batch import Batch
    from luthier.train.feed import MicroBatch
    from luthier.train.step import Trainer

__all__ = ["log_ratio_sum", "reference_point"]


def reference_point(trainer: Trainer, micro_batches: Sequence[MicroBatch]) -> float:
    """z0 of a step; 0 for objectives that have none, without a pass.

    Raises:
        TooLarge: a micro-batch did not fit into the memory of some process; nothing was changed.
    """
    if trainer.objective is None or not trainer.objective.needs_kl:
        return 0.0
    total, rows, too_large = 0.0, 0, None
    for item in micro_batches:
        if item.mismatched is None:
            if trainer.engine.passes_together:
                _take_part(trainer, item.batch)
            continue
        try:
            total += log_ratio_sum(trainer, [item.mismatched])
        except torch.OutOfMemoryError:
            if trainer.engine.passes_together:
                raise  # the others are in the middle of this pass
            too_large = item
            break
        rows += round(item.mismatched.weight_sum)
    if not trainer.engine.passes_together:
        require_memory(trainer, too_large)
    return mean_over_processes(trainer, total, rows)


def mean_over_processes(trainer: Trainer, total: float, rows: int) -> float:
    """max(0, total / rows) over all processes; 0 without rows."""
    from luthier.train.step import all_sum

    whole, count = all_sum(trainer, [total, float(rows)])
    return max(0.0, whole / count) if count else 0.0


def log_ratio_sum(trainer: Trainer, batches: Iterable[Batch]) -> float:
    """Sum of log pi(y|x) - log pi_ref(y|x) over the answers of some batches; the model's mode is put back."""
    from luthier.fast.probe import quiet

    sums = []
    with quiet(trainer.engine.module):
        for batch in batches:
            here = batch.to(trainer.accelerator.device)
            assert here.answers is not None
            assert here.answers.reference is not None, "mismatched answers come with their reference"
            sums.append((trainer.engine.answer_values(here) - here.answers.reference).sum())
    return math.fsum(torch.stack(sums).tolist()) if sums else 0.0


def _take_part(trainer: Trainer, batch: Batch) -> None:
    """A pass that counts nothing, for the processes that have rows."""
    from luthier.fast.probe import quiet

    with quiet(trainer.engine.module):
        trainer.engine.answer_values(batch.to(trainer.accelerator.device))
