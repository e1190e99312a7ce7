"""A loss or a gradient that is not a number: find the rows, and stop.

Only reached when a step has failed, so it may take its time: every document of this process'
micro-batches is run alone, forward and backward, without the other processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch

from luthier.data.branches import collate_rows
from luthier.runtime.errors import Problem, RunFailed
from luthier.train.feed import MicroBatch
from luthier.train.foreach import total_norm
from luthier.train.seeds import seed_micro_batch

if TYPE_CHECKING:
    from luthier.train.step import Trainer

__all__ = ["report_non_finite"]

SHOWN = 20  # rows named in full; the rest is counted


def report_non_finite(trainer: Trainer, micro_batches: Sequence[MicroBatch], *, step: int) -> NoReturn:
    """End the run before the update of `step` (from 0), naming rows. Called by all processes together.

    Raises:
        RunFailed: always, with one problem per row.
    """
    from accelerate.utils import gather_object

    # A row alone is a pass of one process, which sharded weights and shared sequences do not allow.
    together = trainer.engine.passes_together
    mine = [] if together else list(_guilty(trainer, micro_batches, step))
    guilty: list[tuple[str, str, int, str]] = gather_object(mine) if trainer.world_size > 1 else mine
    head = f"step {step + 1} is not finite; stopped before the update, the weights are those of step {step}"
    hint = "look at these rows, lower `train.learning_rate`, or check the base weights"
    if not guilty:
        # Every row alone is finite: the sum overflowed, or the failure is not repeatable.
        alone = (
            "Passes are made by all processes together, so rows were not tried alone"
            if together
            else "Each row alone is finite"
        )
        own = [str(ref) for item in micro_batches for ref in item.batch.refs]
        all_refs = list(dict.fromkeys(gather_object(own) if trainer.world_size > 1 else own))  # some share sequences
        refs = ", ".join(all_refs[:SHOWN])
        refs += f" and {len(all_refs) - SHOWN} more" if len(all_refs) > SHOWN else ""
        raise RunFailed(code="T410", message=f"{head}. {alone}; rows of the step: {refs}", hint=hint)
    problems = [
        Problem(code="T410", message=f"the {what} of this row is not finite", file=file, line=line)
        for what, file, line, _ in guilty[:SHOWN]
    ]
    rows = ", ".join(dict.fromkeys(ref for *_, ref in guilty[:SHOWN]))
    more = f" and {len(guilty) - SHOWN} more" if len(guilty) > SHOWN else ""
    raise RunFailed(problems=[Problem(code="T410", message=f"{head}. Rows: {rows}{more}", hint=hint), *problems])


def _guilty(trainer: Trainer, micro_batches: Sequence[MicroBatch], step: int) -> Iterator[tuple[str, str, int, str]]:
    rank = trainer.accelerator.process_index
    for item in micro_batches:
        for example in item.examples:
            trainer.weights.zero_grad()
            seed_micro_batch(seed=trainer.seed, step=step, micro_batch=item.index, rank=rank)
            batch = collate_rows([example]).to(trainer.accelerator.device)
            # The engine's own module: without DDP's hooks expecting the other processes.
            loss, _ = trainer.engine.module(batch, trainer.label_smoothing)
            ref = example.ref
            if not torch.isfinite(loss):
                yield "loss", ref.file, ref.line, str(ref)
                continue
            loss.backward()
            if not torch.isfinite(total_norm(trainer.weights.gradients())):
                yield "gradient", ref.file, ref.line, str(ref)
    trainer.weights.zero_grad()
