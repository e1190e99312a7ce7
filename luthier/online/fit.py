"""`fit_online`: the story of a run of online RL. TRL's trainer samples, scores and updates; the rest is ours.

arguments.py   recipe -> GRPOConfig, and what does not map one to one
order.py       which prompts each step asks
rewards/       what a completion is worth
trainer.py     TRL's trainer with our prompts and rewards
record.py      metrics, samples, stop
checkpoint.py  TRL's checkpoints, complete or absent
"""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.data.prompts import Prompts
from luthier.model.adapters import Tuned
from luthier.model.attach import cast_adapters
from luthier.model.quiet import first_line, quiet_libraries
from luthier.model.save import save_trained
from luthier.model.stops import stop_ids
from luthier.online import checkpoint
from luthier.online.arguments import Schedule, arguments, make_schedule, mapped_lines
from luthier.online.order import prompt_order
from luthier.online.result import OnlineResult, make_result, write_measured
from luthier.online.rewards.build import Rewards
from luthier.recipe.resolve import Resolved
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.console import note, progress
from luthier.runtime.device import Device
from luthier.runtime.errors import Interrupted, OutOfMemory, RecipeError
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
) -> OnlineResult:  # fmt: skip
    """Train, and write the result to `run.path/final`.

    Goes on from the newest whole checkpoint of this very run, if there is one; `restart` forgets it. On one thread of
    a CPU the rest is then what it would have been, number by number.

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
    schedule = make_schedule(recipe, prompts=len(prompts.train))
    identity = json.loads(json.dumps({**fingerprint, "total_steps": schedule.steps}))
    if restart:
        checkpoint.forget_all(run)
    found = checkpoint.find(run, identity)
    for name in ("metrics.jsonl", "samples.jsonl"):
        run.roll_back(name, step=found.step if found else 0)
    for line in mapped_lines(recipe, schedule):
        note(f"  {line}")
    where = device.torch_device
    with (
        stop_on_signals() as stop, _own_generators(where), _own_accelerator(), _deterministic(recipe),
        _explain_memory(recipe),
    ):  # fmt: skip
        recorder = _recorder(run, schedule, recipe, rewards, stop, found)
        own = _settings(_base_of(tuned.model))
        trainer = _trainer(tuned, prompts, recipe, schedule, recorder, run, tokenizer, rewards, device, identity)
        first = found.step if found else 0
        if found:
            note(f"  going on from the checkpoint of step {first}")
        run.event("training_started", step=first, total_steps=schedule.steps, resumed_from=first or None)
        _reset_peak(where)
        with progress("training", schedule.steps - first, "steps") as bar:
            recorder.attach(trainer, bar)
            with warnings.catch_warnings():
                # transformers 5.23 warns of its own former names while TRL 1.16 uses them.
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated")
                trainer.train(resume_from_checkpoint=str(found.path) if found else None)
        _raise_if_stopped(recorder, schedule, run)
        if prompts.validation and recorder.evaluated_at != schedule.steps:
            trainer.evaluate()
        peak = _peak(where)
        _save(tuned, recipe, tokenizer, run.path / "final", settings=own)
    write_measured(run, recorder, peak_bytes=peak)
    result = make_result(
        run, recorder, schedule, num_generations=recipe.objective.grpo.num_generations, peak_bytes=peak,
        resumed_from=found.step if found else None,
    )  # fmt: skip
    run.event("training_finished", step=schedule.steps, stopped="finished", judge=result.judge)
    return result


# -- putting together


def _recorder(
    run: RunFolder, schedule: Schedule, recipe: Recipe, rewards: Rewards, stop: Stop, found: checkpoint.Found | None
) -> Recorder:
    from luthier.online.record import Recorder

    return Recorder(
        run=run, schedule=schedule, stop=stop, logging_steps=recipe.train.logging_steps,
        seconds=float(found.progress["seconds"]) if found else 0.0, judge=rewards.endpoint,
    )  # fmt: skip


def _trainer(
    tuned: Tuned, prompts: Prompts, recipe: Recipe, schedule: Schedule, recorder: Recorder, run: RunFolder,
    tokenizer: PreTrainedTokenizerBase, rewards: Rewards, device: Device, identity: Mapping[str, Any],
) -> OnlineTrainer:  # fmt: skip
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig

    from luthier.online.trainer import OnlineTrainer, name_prompts, reward_functions

    train, validation = name_prompts(prompts.train, "t"), name_prompts(prompts.validation, "v")
    rows = {**train, **validation}
    order = prompt_order(
        len(prompts.train), batches=schedule.batches, batch=schedule.prompts_per_batch, seed=recipe.train.seed,
        shuffle=recipe.train.shuffle,
    )  # fmt: skip
    base = _base_of(tuned.model)
    base.generation_config.eos_token_id = stop_ids(tokenizer, base)
    values = arguments(
        recipe, rewards=rewards.rewards, schedule=schedule, folder=run.path / checkpoint.FOLDER, device=device,
        validates=bool(validation),
    )  # fmt: skip

    def seal(path: Path) -> None:
        checkpoint.seal(path, identity=identity, progress={"seconds": recorder.seconds})

    try:
        with quiet_libraries():
            trainer = OnlineTrainer(
                rows=rows, seal=seal, model=tuned.model, reward_funcs=reward_functions(rewards.rewards, rows),
                args=GRPOConfig(**values), train_dataset=Dataset.from_dict({"prompt": [f"t{n}" for n in order]}),
                eval_dataset=Dataset.from_dict({"prompt": list(validation)}) if validation else None,
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


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _refuse_float16(recipe: Recipe) -> None:
    if recipe.model.dtype == "float16":
        raise RecipeError(
            code="T474", message="`model.dtype: float16` cannot be trained: small gradients would become zero",
            hint="use bfloat16 or float32; `auto` chooses what this device computes natively",
        )  # fmt: skip


# -- around the training


@contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """Leave the generators of torch, numpy and Python as they were found; TRL and transformers seed all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _own_accelerator() -> Iterator[None]:
    """accelerate keeps the mixed precision of a trainer for the whole process; the next training chooses its own.

    transformers calls the same reset before it builds a trainer.
    """
    from accelerate.state import AcceleratorState

    try:
        yield
    finally:
        AcceleratorState._reset_state()


@contextmanager
def _deterministic(recipe: Recipe) -> Iterator[None]:
    """Only deterministic kernels inside, if the recipe says so."""
    before = torch.are_deterministic_algorithms_enabled()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _explain_memory(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        train = recipe.train
        batch, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
        hint = "lower `objective.grpo.max_completion_length` or num_generations, or `train.gradient_checkpointing=true`"
        if isinstance(batch, int) and isinstance(accumulate, int) and batch > 1 and batch % 2 == 0:
            hint = (
                f"set `train.per_device_train_batch_size={batch // 2}` and "
                f"`train.gradient_accumulation_steps={accumulate * 2}` (less memory in the update; sampling takes all "
                f"{batch * accumulate} completions of a step at once); else {hint}"
            )
        raise OutOfMemory(code="T440", message=f"device memory ran out: {first_line(error)}", hint=hint) from error


def _raise_if_stopped(recorder: Recorder, schedule: Schedule, run: RunFolder) -> None:
    step = recorder.stopped_at
    if step is not None:
        run.event("interrupted", step=step)
        raise Interrupted(
            code="T480", message=f"stopped after step {step} of {schedule.steps}; its checkpoint is saved",
            hint="the same command goes on from there",
        )  # fmt: skip


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Of the allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
