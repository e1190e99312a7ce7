"""A run in progress: step, measure, save, decide, until the end or a signal.

Each turn of `run_to_end` first does what the present step still owes (validation, checkpoint),
then takes the next step. A resumed run enters at the same place, so it owes and does the same.
Steps come in the order of `order.py`, also the first; whether the largest micro-batch fits is
found out before it (`calibrate.py`), and if one does not fit after all, its step runs again in
smaller ones (`halve.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.data.types import TrainRow
from luthier.recipe.objective_kind import pack_capacity, row_kind
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.console import Bar, note, progress
from luthier.runtime.errors import Interrupted
from luthier.runtime.heartbeat import mark
from luthier.runtime.signals import Stop
from luthier.train import trackers
from luthier.train.calibrate import Calibration, calibrate
from luthier.train.checkpoint import checkpoint_path, require_valid
from luthier.train.counts import report, say
from luthier.train.halve import Halving
from luthier.train.measure import Clock
from luthier.train.memory import reset_peak
from luthier.train.mismatched import Mismatched
from luthier.train.order import Order
from luthier.train.predicted import Prediction, calibration_line, measured_mfu, write_measured
from luthier.train.prefetch import Batches
from luthier.train.processes import on_main, peaks_of_all, spread
from luthier.train.progress import Progress, Window
from luthier.train.result import TrainResult, make_result
from luthier.train.served import Served
from luthier.train.setup import batch_shape, interval
from luthier.train.snapshot import load_weights, take
from luthier.train.split import TooLarge
from luthier.train.step import Abandoned, Trainer, Update, update
from luthier.train.validate import validate

__all__ = ["Running"]


@dataclass(slots=True, kw_only=True)
class Running:
    """A run in progress."""

    trainer: Trainer
    recipe: Recipe
    run: RunFolder
    order: Order
    batches: Batches
    validation: Sequence[TrainRow]
    validation_mismatched: Mismatched | None
    stop: Stop
    position: Progress
    identity: dict[str, Any]
    resumed_from: int | None
    clock: Clock
    calibrates: bool
    """Measure the largest micro-batch before the first step."""
    plan: Prediction | None
    served: Served | None = None
    """Writes each checkpoint as servers load it, too."""
    calibration: Calibration | None = None
    saved_step: int | None = None
    agreed_to_stop: bool = False
    """Some process was asked to stop (known to all after each step)."""

    @property
    def is_main(self) -> bool:
        """This process writes the files."""
        return bool(self.trainer.accelerator.is_main_process)

    def run_to_end(self) -> Literal["finished", "early_stopping"]:
        """Steps until the last one, early stopping, or a signal."""
        total, start = self.order.total_steps, self.position.step
        self.saved_step = self.resumed_from
        self.stop.begun = True
        self._announce()
        if self.resumed_from is not None:
            self._serve(self.resumed_from)
        if self.calibrates and start < total:
            self._calibrate()
        reset_peak(self.trainer.accelerator.device)
        with progress("training", total - start, "steps") as bar:
            try:
                while True:
                    self._evaluate_if_due()
                    if self._out_of_patience():
                        self._save()
                        return "early_stopping"
                    if self.position.step == total:
                        self._save()
                        return "finished"
                    self._save_if_due()
                    if self._must_stop():
                        raise Abandoned
                    self._one_step(bar)
            except Abandoned:
                self._save()
                raise self._interrupted() from None

    # -- one turn

    def _one_step(self, bar: Bar) -> None:
        position = self.position
        started = time.perf_counter()
        done = self._update()
        seconds = time.perf_counter() - started
        self.agreed_to_stop = done.stop
        position.step += 1
        position.add(done, seconds)
        self.clock.add(seconds, tokens=done.tokens, trained_tokens=done.trained_tokens)
        if position.step % self.recipe.train.logging_steps == 0 or position.step == self.order.total_steps:
            self._write_metrics(done)
        bar.advance(
            say=f"loss {done.loss:.4f}{say(self._found(done))}  lr {done.learning_rate:.2e}  "
            f"{done.tokens / max(seconds, 1e-9):,.0f} tok/s"
        )

    def _found(self, done: Update) -> dict[str, float]:
        return report(self.trainer.objective, done.sums, trained_tokens=done.trained_tokens)

    def _update(self) -> Update:
        """The present step, in micro-batches that fit into memory."""
        step = self.position.step
        while True:
            try:
                micro_batches = self.batches.take(step)
                return update(self.trainer, micro_batches, step=step, stop_requested=lambda: self.stop.requested)
            except TooLarge as error:
                failed = error.failed
            self._halving().halve(failed, during=f"step {step + 1}")

    def _halving(self) -> Halving:
        return Halving(
            batches=self.batches, position=self.position, recipe=self.recipe, run=self.run, is_main=self.is_main
        )

    def _calibrate(self) -> None:
        trainer, remaining = self.trainer, self.order.total_steps - self.position.step
        self.calibration = calibrate(trainer, self._halving(), moments=trainer.moments)
        note(f"  {calibration_line(self.calibration, self.plan, steps=remaining)}")
        if self.is_main:
            self.run.event("calibrated", step=self.position.step, **self.calibration.to_json())

    def _write_metrics(self, done: Update) -> None:
        position, window = self.position, self.position.window
        line = {
            "step": position.step, "epoch": self.order.epochs_after(position.step),
            "loss": window.loss_sum / window.weight_sum, "grad_norm": done.grad_norm,
            "learning_rate": done.learning_rate, "tokens": window.tokens, "trained_tokens": window.trained_tokens,
            "seconds": position.seconds, "tokens_per_second": window.tokens / max(window.seconds, 1e-9),
            **report(self.trainer.objective, window.sums, trained_tokens=window.trained_tokens),
        }  # fmt: skip
        position.window = Window()
        self._log(line)

    def _evaluate_if_due(self) -> None:
        position, total = self.position, self.order.total_steps
        every = interval(self.recipe.train, "eval_steps")
        due = position.step == total or (every is not None and position.step % every == 0)
        if not self.validation or not due or position.step == 0 or position.eval_step == position.step:
            return
        mark("validation", step=position.step - 1, watched=False)
        found = validate(
            self.trainer, self.validation, step=position.step, tokens_per_batch=self._tokens_per_batch(),
            abandon=self._must_stop, mismatched=self.validation_mismatched,
        )  # fmt: skip
        better = position.judge(found.loss, threshold=self.recipe.train.early_stopping_threshold)
        self.trainer.schedule.observe(found.loss)
        self._log({
            "step": position.step, "eval_loss": found.loss, "eval_tokens": found.trained_tokens,
            **{f"eval_{name}": value for name, value in found.metrics.items()},
        })  # fmt: skip
        note(
            f"  step {position.step}: validation loss {found.loss:.4f}{say(found.metrics)}{' (best)' if better else ''}"
        )

    def _save_if_due(self) -> None:
        position, train = self.position, self.recipe.train
        every = interval(train, "save_steps")
        due = every is not None and position.step > 0 and position.step % every == 0
        best = position.best is not None and position.best.step == position.step and train.load_best_model_at_end
        if due or best:
            self._save()

    def _save(self) -> None:
        """A checkpoint of the present step, unless there is one."""
        position = self.position
        if self.saved_step == position.step or position.step == 0:
            return
        if self.is_main:
            self.run.flush("metrics.jsonl")  # first: a power cut then loses none that the checkpoint counts on
        started = time.perf_counter()
        mark("write a checkpoint", step=position.step - 1, watched=False)
        removed = take(
            self.trainer, position, folder=self.run.path / "checkpoints", identity=self.identity,
            keep=self.recipe.train.save_total_limit,
        )  # fmt: skip
        self.saved_step = position.step
        if self.is_main:
            seconds = round(time.perf_counter() - started, 3)
            self.run.event("checkpoint_saved", step=position.step, seconds=seconds, removed=removed)
        self._serve(position.step, removed)

    def _serve(self, step: int, removed: Sequence[int] = ()) -> None:
        if self.served is not None:
            self.served.keep(step, removed)

    def _interrupted(self) -> Interrupted:
        step, total = self.position.step, self.order.total_steps
        if self.is_main:
            self.run.event("interrupted", step=step)
        what = f"the checkpoint of step {step} is saved" if step else "no step was finished, nothing had to be saved"
        return Interrupted(
            code="T480",
            message=f"stopped after step {step} of {total}; {what}",
            hint="the same command goes on from there",
        )

    # -- decisions

    def _must_stop(self) -> bool:
        return self.stop.requested if self.trainer.world_size == 1 else self.agreed_to_stop

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.early_stopping_patience
        return patience is not None and self.position.evaluations_since_best >= patience

    def _tokens_per_batch(self) -> int:
        recipe = self.recipe
        return self.batches.size.sequences * pack_capacity(row_kind(recipe.objective.name), recipe.data.max_length)

    def choose_weights(self) -> int:
        """Load the best checkpoint if the recipe says so; returns the step whose weights are in the model."""
        best = self.position.best
        if not self.recipe.train.load_best_model_at_end or best is None or best.step == self.position.step:
            return self.position.step
        path = checkpoint_path(self.run.path / "checkpoints", best.step)
        on_main(self.trainer.accelerator, lambda: require_valid(path))
        load_weights(self.trainer, path)
        note(f"  taking the weights of step {best.step} (validation loss {best.loss:.4f})")
        return best.step

    # -- telling

    def _announce(self) -> None:
        order, start = self.order, self.position.step
        batch, accumulation = batch_shape(self.recipe.train)
        note(
            f"  {order.total_steps} steps of {order.sequences_per_step} sequences "
            f"({batch} x {accumulation} accumulated x {self.trainer.dealt_to}), "
            f"{order.sequences} sequences an epoch"
        )
        if self.resumed_from is not None:
            note(f"  going on from the checkpoint of step {start}")
        if self.is_main:
            self.run.event(
                "training_started", step=start, total_steps=order.total_steps, resumed_from=self.resumed_from,
                **spread(self.trainer.accelerator, self.recipe.distributed.strategy),
            )  # fmt: skip

    def _log(self, line: dict[str, Any]) -> None:
        if self.is_main:
            self.run.metric(**line)
        trackers.log(self.trainer.accelerator, {k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def result(self, stopped: Literal["finished", "early_stopping"], weights_from: int) -> TrainResult:
        """The record of the finished run; what was measured goes into `measured.json` too."""
        peaks, plan = peaks_of_all(self.trainer.accelerator), self.plan
        measured = self.clock.measured(peak_bytes=max(peaks), calibration=self.calibration)
        by_process = tuple(peaks) if len(peaks) > 1 else None
        measured = replace(measured, mfu=measured_mfu(measured, plan), peak_bytes_by_process=by_process)
        if self.is_main:
            write_measured(self.run, measured, plan)
            self.run.event(
                "training_finished", step=self.position.step, stopped=stopped, weights_from_step=weights_from
            )
        return make_result(
            self.run, self.position, self.order, measured, stopped=stopped, weights_from=weights_from,
            processes=self.trainer.world_size, wrapper=type(self.trainer.wrapper).__name__,
            resumed_from=self.resumed_from,
        )  # fmt: skip
