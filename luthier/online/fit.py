"""`fit_online`: the story of a run of online RL. TRL's trainer samples, scores and updates; the rest is ours.

arguments.py   recipe -> GRPOConfig, and what does not map one to one
order.py       which prompts each step asks
rewards/       what a completion is worth
trainer.py     TRL's trainer with our prompts and rewards
held_out.py    prompts that are answered once an evaluation
record.py      metrics, samples, stop
checkpoint.py  TRL's checkpoints, complete or absent
resume.py      where it begins
around.py      what is put back afterwards

Several processes each call it: TRL and accelerate copy the model (DDP), deal the completions of a step and exchange
rewards and gradients; process 0 writes.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.data.prompts import Prompts
from luthier.model.adapters import Tuned
from luthier.model.attach import cast_adapters
from luthier.model.quiet import first_line, quiet_libraries
from luthier.model.save import save_trained
from luthier.model.stops import stop_ids
from luthier.online import checkpoint
from luthier.online.arguments import Schedule, arguments, make_schedule, mapped_lines
from luthier.online.around import deterministic, explain_memory, own_accelerator, own_generators, peak, reset_peak
from luthier.online.held_out import Deal, deal
from luthier.online.order import prompt_order
from luthier.online.processes import Alone, Processes
from luthier.online.result import OnlineResult, make_result, write_measured
from luthier.online.resume import find_start, reseed, tell_start
from luthier.online.rewards.build import Rewards
from luthier.recipe.resolve import Resolved
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.console import note, progress
from luthier.runtime.device import Device
from luthier.runtime.errors import Interrupted, RecipeError
from luthier.runtime.heartbeat import mark
from luthier.runtime.signals import Stop, stop_on_signals
from luthier.runtime.trackers import require_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.online.record import Recorder
    from luthier.online.trainer import OnlineTrainer

__all__ = ["fit_online", "weights_dtype"]


def weights_dtype(recipe: Recipe) -> str:
    """Type to load the base in: weights that are trained themselves are held in float32 (autocast computes in 16 bits).

    TRL's trainer keeps no masters, and a step of 1e-6 is lost in the 8 bits of a bfloat16 weight.
    """
    return recipe.model.dtype if recipe.method.name in ("lora", "qlora") else "float32"


def fit_online(
    tuned: Tuned, prompts: Prompts, resolved: Resolved, *, run: RunFolder, tokenizer: PreTrainedTokenizerBase,
    rewards: Rewards, device: Device, fingerprint: Mapping[str, Any], restart: bool = False,
    processes: Processes | None = None,
) -> OnlineResult:  # fmt: skip
    """Train, and write the result to `run.path/final`.

    Goes on from the newest whole checkpoint of this very run, if there is one; `restart` forgets it. On one thread of
    a CPU the rest is then what it would have been, number by number. Called by all `processes` of a run (None: one);
    another number of them goes on where a step has the same completions, with generators of its own.

    Raises:
        RecipeError: settings that TRL refuses; checkpoints of a run with other data, model or settings.
        RunFailed: a loss or gradient is not finite; a reward failed; no checkpoint is whole.
        AccessError: a judge cannot be reached.
        OutOfMemory: with the smallest change that helps.
        Interrupted: SIGINT or SIGTERM; a checkpoint was saved.
    """
    recipe = resolved.recipe
    require_trackers(recipe.train.report_to)
    _refuse_float16(recipe)
    group = processes or Alone()
    schedule = make_schedule(recipe, prompts=len(prompts.train), processes=group.size)
    identity = json.loads(json.dumps({**fingerprint, "total_steps": schedule.steps}))
    found = group.from_main("checkpoint to go on from", lambda: find_start(run, identity, group.size, restart=restart))
    for line in mapped_lines(recipe, schedule):
        note(f"  {line}")
    where = device.torch_device
    with (
        stop_on_signals() as stop, own_generators(where), own_accelerator(), deterministic(recipe),
        explain_memory(recipe),
    ):  # fmt: skip
        stop.begun = True
        recorder = _recorder(run, schedule, recipe, rewards, stop, found, writes=group.is_main)
        own = _settings(_base_of(tuned.model))
        trainer = _trainer(
            tuned, prompts, recipe, schedule, recorder, run, tokenizer, rewards, device, identity,
            reseed=reseed(recipe, found, group),
        )  # fmt: skip
        if group.is_main:
            tell_start(run, schedule, found, device)
        reset_peak(where)
        _train(trainer, recorder, schedule, found)
        _raise_if_stopped(recorder, schedule, run)
        mark("held-out prompts and the result", watched=False)
        if prompts.validation and recorder.evaluated_at != schedule.steps:
            trainer.evaluate()
        most = torch.tensor([peak(where)], device=where)
        peak_bytes = int(trainer.accelerator.gather(most).max())

        def conclude() -> OnlineResult:
            _save(tuned, recipe, tokenizer, run.path / "final", settings=own)
            write_measured(run, recorder, peak_bytes=peak_bytes)
            result = make_result(
                run, recorder, schedule, num_generations=recipe.objective.grpo.num_generations, peak_bytes=peak_bytes,
                resumed_from=found.step if found else None, wrapper=type(trainer.model_wrapped).__name__,
            )  # fmt: skip
            run.event("training_finished", step=schedule.steps, stopped="finished", judge=result.judge)
            return result

        return group.from_main("result of online RL", conclude)


def _train(trainer: OnlineTrainer, recorder: Recorder, schedule: Schedule, found: checkpoint.Found | None) -> None:
    """From the checkpoint, or the start, to the last step or a stop."""
    first = found.step if found else 0
    with progress("training", schedule.steps - first, "steps") as bar, warnings.catch_warnings():
        recorder.attach(trainer, bar)
        # transformers 5.23 and accelerate warn of former names, which TRL 1.16 and transformers use.
        for name in ("gradient_checkpointing", "broadcast_buffers"):
            warnings.filterwarnings("ignore", message=f".*{name}. is deprecated")
        trainer.train(resume_from_checkpoint=str(found.path) if found else None)


# -- putting together


def _recorder(
    run: RunFolder, schedule: Schedule, recipe: Recipe, rewards: Rewards, stop: Stop, found: checkpoint.Found | None, *,
    writes: bool,
) -> Recorder:  # fmt: skip
    from luthier.online.record import Recorder

    return Recorder(
        run=run, schedule=schedule, stop=stop, logging_steps=recipe.train.logging_steps,
        seconds=float(found.progress["seconds"]) if found else 0.0, judge=rewards.endpoint, writes=writes,
    )  # fmt: skip


def _trainer(
    tuned: Tuned, prompts: Prompts, recipe: Recipe, schedule: Schedule, recorder: Recorder, run: RunFolder,
    tokenizer: PreTrainedTokenizerBase, rewards: Rewards, device: Device, identity: Mapping[str, Any], *,
    reseed: int | None,
) -> OnlineTrainer:  # fmt: skip
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig

    from luthier.online.trainer import OnlineTrainer, name_prompts, reward_functions

    train, validation = name_prompts(prompts.train, "t"), name_prompts(prompts.validation, "v")
    held_out = _held_out(recipe, list(validation), schedule)
    rows = {**train, **validation, **{name: validation[name.rstrip("~")] for name in held_out.names}}
    order = prompt_order(
        len(prompts.train), batches=schedule.batches, batch=schedule.prompts_per_batch, seed=recipe.train.seed,
        shuffle=recipe.train.shuffle,
    )  # fmt: skip
    base = _base_of(tuned.model)
    base.generation_config.eos_token_id = stop_ids(tokenizer, base)
    values = arguments(
        recipe, rewards=rewards.rewards, schedule=schedule, folder=run.path / checkpoint.FOLDER, device=device,
        held_out=held_out,
    )  # fmt: skip

    def seal(path: Path) -> None:
        progress = {"seconds": recorder.seconds, "processes": schedule.processes}
        checkpoint.seal(path, identity=identity, progress=progress)
        checkpoint.keep_newest(run, recipe.train.save_total_limit)

    try:
        with quiet_libraries():
            trainer = OnlineTrainer(
                rows=rows, seal=seal, reseed=reseed, model=tuned.model,
                reward_funcs=reward_functions(rewards.rewards, rows),
                args=GRPOConfig(**values), train_dataset=Dataset.from_dict({"prompt": [f"t{n}" for n in order]}),
                eval_dataset=Dataset.from_dict({"prompt": list(held_out.names)}) if validation else None,
                processing_class=copy.deepcopy(tokenizer), callbacks=[recorder],
            )  # fmt: skip
    except torch.OutOfMemoryError:  # a RuntimeError, but no fault of the settings: `_explain_memory` tells it
        raise
    except (ValueError, NotImplementedError, RuntimeError) as error:
        message = f"TRL's trainer refuses these settings: {first_line(error)}"
        raise RecipeError(code="T494", message=message, hint="change the setting that it names") from error
    trainer.remove_callback(PrinterCallback)
    if recipe.method.name in ("lora", "qlora"):
        cast_adapters(tuned.model, torch.float32)
    return trainer


def _held_out(recipe: Recipe, names: list[str], schedule: Schedule) -> Deal:
    batch = recipe.train.per_device_train_batch_size
    assert isinstance(batch, int), "resolved"
    return deal(names, at_most=batch, processes=schedule.processes)


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _refuse_float16(recipe: Recipe) -> None:
    if recipe.model.dtype == "float16":
        raise RecipeError(
            code="T474", message="`model.dtype: float16` cannot be trained: small gradients would become zero",
            hint="use bfloat16 or float32; `auto` chooses what this device computes natively",
        )  # fmt: skip


def _raise_if_stopped(recorder: Recorder, schedule: Schedule, run: RunFolder) -> None:
    step = recorder.stopped_at
    if step is not None:
        if recorder.writes:
            run.event("interrupted", step=step)
        raise Interrupted(
            code="T480", message=f"stopped after step {step} of {schedule.steps}; its checkpoint is saved",
            hint="the same command goes on from there",
        )  # fmt: skip


def _settings(base: Any) -> tuple[Any, Any, Any]:
    """What TRL changes in a model's settings: the pad token, the cache, how it generates."""
    config = base.config
    return config.pad_token_id, config.use_cache, copy.deepcopy(base.generation_config)


def _save(
    tuned: Tuned, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, *, settings: tuple[Any, Any, Any]
) -> None:
    """The adapter, or the model in the recipe's type; without what TRL put beside it or changed in its settings."""
    model, base = tuned.model, _base_of(tuned.model)
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
    if recipe.method.name not in ("lora", "qlora") and recipe.model.dtype == "bfloat16":
        base.to(torch.bfloat16)
    base.config.pad_token_id, base.config.use_cache, base.generation_config = settings
    save_trained(model, tokenizer, folder)
