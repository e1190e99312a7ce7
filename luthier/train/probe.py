"""Short walks from one start: what `fit` works with, without its run folder.

A probe has the recipe's engine, batches and order, made by the same functions as `fit`'s. Each walk
begins at the same weights with a fresh optimizer and sees the same rows in the same order; whatever
a walk did is undone at its end, bit for bit. A walk of n steps with the recipe's
schedule over n steps gives the numbers of `luthier train` with `max_steps: n` (a test holds them equal).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.data.types import TrainRow
from luthier.model.adapters import Tuned
from luthier.recipe.objective_kind import pack_capacity, row_kind
from luthier.recipe.resolve import Resolved
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.train.halve import Halving
from luthier.train.loop import refuse_float16
from luthier.train.memory import explain_out_of_memory
from luthier.train.preferences import Rows, prepare_rows
from luthier.train.prefetch import Batches
from luthier.train.processes import make_accelerator
from luthier.train.progress import Progress
from luthier.train.reference_cache import ReferenceCache
from luthier.train.schedule import Rising, Schedule, warmup_steps
from luthier.train.seeds import own_random_numbers
from luthier.train.setup import deterministic_kernels, fit_base, make_feed, make_order, make_trainer
from luthier.train.split import TooLarge
from luthier.train.step import Trainer, Update, update
from luthier.train.updates import fresh_optimizer
from luthier.train.validate import validate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.data.prepare import Prepared

__all__ = ["Probe", "Start", "probing"]


class Start:
    """Trained weights as they are now, on the host, to come back to.

    Right after `make_trainer` an fp32 master is its 16-bit weight exactly, so the weight is what is kept: 2 bytes
    of host memory for each trained weight held in 16 bits, 4 for each in fp32.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._weights = trainer.weights
        self._saved: dict[str, Tensor] = {
            name: live.detach().to("cpu", copy=True) for name, live in trainer.weights.live.items()
        }

    def restore(self) -> None:
        """Weights and masters as they were; no gradient is left, and no state of the walk's optimizer is held."""
        self._weights.zero_grad()
        self._weights.run.release()
        self._weights.load(self._saved)


@dataclass(slots=True, kw_only=True)
class Probe:
    """A model that is ready to train, and the way back."""

    trainer: Trainer
    recipe: Recipe
    run: RunFolder
    """Where events go (memory that ran out); nothing else is written."""
    model: PreTrainedModel
    batches: Batches
    rows: Rows
    start: Start
    position: Progress

    @contextmanager
    def from_start(self) -> Iterator[None]:
        """What happens inside is undone at the end, whatever the end is."""
        try:
            yield
        finally:
            self.start.restore()

    def walk(self, learning_rate: float, steps: int) -> Iterator[Update]:
        """Take `steps` steps with the recipe's warm-up and decay over them and this peak rate, inside `from_start`.

        Raises:
            RunFailed: a step is not finite; nothing was updated by it.
            OutOfMemory: a single document does not fit.
        """
        train, optimizer = self.recipe.train, self._optimizer(learning_rate)
        schedule = Schedule(
            optimizer, name=train.lr_scheduler_type, warmup=warmup_steps(train, steps), total_steps=steps,
            settings=train.lr_scheduler_kwargs,
        )  # fmt: skip
        return self._steps(optimizer, schedule, steps)

    def rise(self, low: float, high: float, steps: int) -> Iterator[Update]:
        """As `walk`, with rates that rise exponentially from `low` to `high`."""
        optimizer = self._optimizer(low)
        return self._steps(optimizer, Rising(optimizer, rise=high / low, steps=steps), steps)

    def _optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        train = self.recipe.train.model_copy(update={"learning_rate": learning_rate})
        return fresh_optimizer(self.model, self.trainer.weights, train, device=self.trainer.accelerator.device)

    def _steps(self, optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> Iterator[Update]:
        trainer = replace(self.trainer, optimizer=optimizer, schedule=schedule)
        for step in range(steps):
            yield self._step(trainer, step)

    def held_out(self, *, step: int) -> float:
        """Loss over the validation rows, after `step` steps.

        Raises:
            RunFailed: it is not finite.
        """
        recipe = self.recipe
        capacity = pack_capacity(row_kind(recipe.objective.name), recipe.data.max_length)
        return validate(
            self.trainer, self.rows.validation, tokens_per_batch=self.batches.size.sequences * capacity, step=step,
            abandon=lambda: False, mismatched=self.rows.validation_mismatched,
        ).loss  # fmt: skip

    def _step(self, trainer: Trainer, step: int) -> Update:
        while True:
            try:
                return update(trainer, self.batches.take(step), step=step, stop_requested=lambda: False)
            except TooLarge as error:
                failed = error.failed
            Halving(batches=self.batches, position=self.position, recipe=self.recipe, run=self.run, is_main=True).halve(
                failed, during=f"step {step + 1}"
            )


@contextmanager
def probing(
    tuned: Tuned,
    data: Prepared,
    resolved: Resolved,
    *,
    run: RunFolder,
    steps: int,
    validation: Sequence[TrainRow],
    cache: ReferenceCache | None = None,
) -> Iterator[Probe]:
    """Everything `fit` trains with, for walks of at most `steps` steps; one process.

    Args:
        tuned: Model prepared by the recipe's method.
        data: Rows of the recipe.
        resolved: The recipe; its learning rate is only a placeholder.
        run: A folder that is not the recipe's own.
        steps: Longest walk.
        validation: Rows for `held_out`.
        cache: Of reference log-probabilities, for objectives that need them.

    Raises:
        RecipeError: the recipe cannot be trained (no trained weight, float16).
        OutOfMemory: it does not fit.
    """
    recipe = resolved.recipe
    refuse_float16(recipe)
    device = next(iter(tuned.model.parameters())).device
    accelerator = make_accelerator(device, report_to=[], logging_dir=str(run.path / "trackers"))
    train = recipe.train.model_copy(update={"max_steps": steps})
    order = make_order(train, sequences=len(data.packs), world_size=accelerator.num_processes)
    with (
        own_random_numbers(device), deterministic_kernels(train.deterministic), explain_out_of_memory(recipe, device),
    ):  # fmt: skip
        trainer = make_trainer(accelerator, tuned.model, recipe, total_steps=steps)
        fit_base(trainer, data.train, data.packs, order=order)
        rows = prepare_rows(
            trainer, replace(data, validation=list(validation)), order=order, max_length=recipe.data.max_length,
            cache=cache,
        )  # fmt: skip
        feed = make_feed(
            accelerator, order, train, examples=rows.train, packs=data.packs, size=None, mismatched=rows.mismatched
        )
        batches = Batches(feed)
        try:
            yield Probe(
                trainer=trainer, recipe=recipe, run=run, model=tuned.model, batches=batches, rows=rows,
                start=Start(trainer), position=Progress(),
            )  # fmt: skip
        finally:
            batches.close()
            trainer.weights.close()
            trainer.engine.detach()
