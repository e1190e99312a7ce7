"""The loop: `fit` tunes a prepared model on prepared data.

    order.py      which rows an update sees           step.py       one update, top to bottom
    setup.py      engine, optimizer, schedule         running.py    the turns of the loop
    snapshot.py   checkpoints                         validate.py   held-out loss
    resume.py     go on, or say why not               calibrate.py  the largest micro-batch, measured first
    preferences.py, reference.py   what rows of preferences need before the first step
    halve.py      out of memory in spite of the plan

After `fit`, `run.path/final` holds the adapter or the model, `metrics.jsonl` one line per logged
step, and `checkpoints/` what is needed to go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.types import TrainRow
from luthier.model.adapters import Tuned
from luthier.model.save import save_trained
from luthier.model.starts import keep_start, start_of
from luthier.model.stream import Source
from luthier.recipe.distributed_rules import require_groups
from luthier.recipe.optimizers import require_optimizer
from luthier.recipe.replicate_rules import require_copies
from luthier.recipe.resolve import Resolved
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runs.stages import flatten
from luthier.runtime.errors import DataError, RecipeError
from luthier.runtime.heartbeat import mark
from luthier.runtime.signals import stop_on_signals
from luthier.train import trackers
from luthier.train.distributed.folders import first_of_machine, require_same
from luthier.train.distributed.gathered import write_gathered
from luthier.train.measure import Clock
from luthier.train.memory import explain_out_of_memory
from luthier.train.predicted import predicted
from luthier.train.preferences import Rows, prepare_rows, write_held_out
from luthier.train.prefetch import Batches
from luthier.train.processes import make_accelerator, on_main, require_equal
from luthier.train.progress import Progress
from luthier.train.reference_cache import ReferenceCache, reference_identity, reference_start
from luthier.train.result import TrainResult
from luthier.train.resume import Resumed, find, here, roll_back_metrics, run_identity, start_anew
from luthier.train.running import Running
from luthier.train.seeds import own_random_numbers
from luthier.train.served import Served
from luthier.train.setup import deterministic_kernels, fit_base, make_feed, make_order, make_trainer
from luthier.train.snapshot import restore

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from luthier.data.prepare import Prepared
    from luthier.train.order import Order
    from luthier.train.step import Trainer

__all__ = ["START_FOLDER", "fit", "refuse_float16"]

START_FOLDER = "start"
"""In the run folder: what adapters took out of the base, for resuming (`model/starts.py`)."""


def fit(
    tuned: Tuned,
    data: Prepared,
    resolved: Resolved,
    *,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: dict[str, Any],
    restart: bool = False,
    calibrate: bool | None = None,
    reference_cache: Path | None = None,
    device: torch.device | None = None,
) -> TrainResult:
    """Train, and write the result to `run.path/final`.

    Goes on from the newest valid checkpoint in the run folder, if there is one and it is of
    this very run. `fingerprint` is everything else the trained weights depend on (data, base,
    recipe). `restart` forgets earlier checkpoints instead. `calibrate` measures the largest
    micro-batch before the first step (None: on CUDA); it changes no result. `reference_cache` is a
    folder in which reference log-probabilities of runs over the same rows are kept. `device` is where the model
    computes, if it is not there yet (None: it is).

    Raises:
        RunFailed: a step is not finite; no checkpoint is whole.
        RecipeError: the checkpoints are of a run with other data, model or settings.
        DataError: nothing to train on, no validation rows where they are needed, or rows of another kind than the
            objective's.
        EnvironmentProblem: a tracker is missing, the disk is full, ...
        OutOfMemory: smaller micro-batches do not help; with the smallest change that does.
        Interrupted: SIGINT or SIGTERM; a checkpoint was saved.
    """
    clock = Clock()
    recipe = resolved.recipe
    trackers.require_trackers(recipe.train.report_to)
    require_optimizer(recipe.train, device_type=next(iter(tuned.model.parameters())).device.type)
    _require_validation(recipe, data.validation)
    refuse_float16(recipe)
    accelerator = make_accelerator(
        device or next(iter(tuned.model.parameters())).device,
        report_to=list(recipe.train.report_to), logging_dir=str(run.path / "trackers"),
    )  # fmt: skip
    parts = recipe.distributed.sequence_parallel_size
    require_groups(parts, accelerator.num_processes)
    require_copies(recipe.distributed.dp_replicate_size, accelerator.num_processes)
    order = make_order(recipe.train, sequences=len(data.packs), world_size=accelerator.num_processes, parts=parts)
    start, identity = _identify(accelerator, tuned, recipe, fingerprint, order=order)
    require_same(identity)
    if restart:
        on_main(accelerator, lambda: start_anew(run))
    resumed = here(on_main(accelerator, lambda: find(run, identity)), run)
    _keep_adapter_start(accelerator, tuned, run)
    device = accelerator.device
    with (
        own_random_numbers(device), deterministic_kernels(recipe.train.deterministic),
        stop_on_signals() as stop, explain_out_of_memory(recipe, device),
    ):  # fmt: skip
        cache = None if reference_cache is None else ReferenceCache(folder=reference_cache, start=start)
        trainer, rows, position = _start(accelerator, tuned, data, recipe, order=order, cache=cache, resumed=resumed)
        on_main(
            accelerator, lambda: roll_back_metrics(run, step=position.step, eval_step=position.eval_step)
        )  # fmt: skip
        feed = make_feed(
            accelerator, order, recipe.train, examples=rows.train, packs=data.packs, size=position.size,
            mismatched=rows.mismatched, parts=parts,
        )  # fmt: skip
        loop = Running(
            trainer=trainer, recipe=recipe, run=run, order=order, stop=stop, position=position, identity=identity,
            batches=Batches(feed), validation=rows.validation, validation_mismatched=rows.validation_mismatched,
            clock=clock, plan=predicted(run), resumed_from=resumed.checkpoint.step if resumed else None,
            calibrates=device.type == "cuda" if calibrate is None else calibrate,
            served=Served(run, accelerator, lambda folder: _save_weights(
                tuned, trainer, tokenizer, folder, max_shard_size=recipe.export.max_shard_size,
            )) if recipe.export.checkpoints else None,
        )  # fmt: skip
        return _to_the_end(loop, tuned, rows, tokenizer)


def _keep_adapter_start(accelerator: Accelerator, tuned: Tuned, run: RunFolder) -> None:
    """What adapters that are cut out of the base (PiSSA, OLoRA) began with, once on each machine; the same on all."""
    found = start_of(tuned.model)
    if found is None:
        return
    on_main(accelerator, lambda: keep_start(found, run.path / START_FOLDER))
    if first_of_machine():
        keep_start(found, run.path / START_FOLDER)
    require_equal(accelerator, found.fingerprint(), what="what the adapters start with")


def _to_the_end(loop: Running, tuned: Tuned, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> TrainResult:
    """Run, choose the weights, look at held-out answers once more, save; give everything back whatever happens."""
    trainer, run, recipe = loop.trainer, loop.run, loop.recipe
    accelerator = trainer.accelerator
    try:
        trackers.start(accelerator, project=recipe.name or run.path.name, config=flatten(loop.identity))
        result = loop.run_to_end()
        mark("write the result", watched=False)
        weights_from = loop.choose_weights()
        write_held_out(trainer, rows, run)
        _save_weights(tuned, trainer, tokenizer, run.path / "final", max_shard_size=recipe.export.max_shard_size)
    finally:
        loop.batches.close()
        trackers.finish(accelerator)
        trainer.weights.close()
        trainer.engine.detach()
    return loop.result(result, weights_from)


def _save_weights(
    tuned: Tuned, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_shard_size: str
) -> None:
    """The trained weights as they are now, for servers; called on all processes, written by the first."""
    accelerator = trainer.accelerator

    def write(whole: Source | None = None, masters: Mapping[str, torch.Tensor] | None = None) -> None:
        save_trained(tuned.model, tokenizer, folder, masters=masters, whole=whole, max_shard_size=max_shard_size)

    if trainer.weights.in_shards:
        write_gathered(accelerator, tuned.model, write)
        return
    masters = trainer.weights.result(keep=accelerator.is_main_process)
    on_main(accelerator, lambda: write(None, masters or None))


def _identify(
    accelerator: Accelerator, tuned: Tuned, recipe: Recipe, fingerprint: dict[str, Any], *, order: Order
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the reference of preferences is of, and what a checkpoint must be of for this run to go on from it."""
    adapter_start = start_of(tuned.model)
    if adapter_start is not None:
        fingerprint = {**fingerprint, "start": adapter_start.fingerprint()}
    start = reference_start(
        fingerprint, init_from=recipe.method.init_from, device=accelerator.device.type,
        reward_seed=recipe.train.seed if recipe.objective.name == "reward" else None,
    )  # fmt: skip
    identity = run_identity(
        {**fingerprint, **reference_identity(recipe.objective.name, start)},
        world_size=accelerator.num_processes, parts=recipe.distributed.sequence_parallel_size,
        total_steps=order.total_steps,
    )  # fmt: skip
    return start, identity


def _start(
    accelerator: Accelerator, tuned: Tuned, data: Prepared, recipe: Recipe, *, order: Order,
    cache: ReferenceCache | None, resumed: Resumed | None,
) -> tuple[Trainer, Rows, Progress]:  # fmt: skip
    """The trainer where the run is, and the rows with what the objective needs to know of its start.

    Base and reference are made before a checkpoint is restored: those of the start, whatever was trained since.
    """
    trainer = make_trainer(accelerator, tuned.model, recipe, total_steps=order.total_steps)
    try:
        fit_base(trainer, data.train, data.packs, order=order)
        rows = prepare_rows(trainer, data, order=order, max_length=recipe.data.max_length, cache=cache)
        return trainer, rows, restore(trainer, resumed) if resumed else Progress()
    except BaseException:
        trainer.weights.close()
        trainer.engine.detach()
        raise


def refuse_float16(recipe: Recipe) -> None:
    """Gradients of float16 underflow without loss scaling, which this loop does not do."""
    if recipe.model.dtype == "float16":
        raise RecipeError(
            code="T474",
            message="`model.dtype: float16` cannot be trained: small gradients would become zero",
            hint="use bfloat16 or float32; `auto` chooses what this device computes natively",
        )


def _require_validation(recipe: Recipe, validation: Sequence[TrainRow]) -> None:
    wanted = [key for key in ("early_stopping_patience", "load_best_model_at_end") if getattr(recipe.train, key)]
    if wanted and not validation:
        raise DataError(
            code="T473",
            message=f"`train.{wanted[0]}` needs validation rows, and there are none",
            hint="set `data.validation.fraction`, or `data.validation.path`",
        )
