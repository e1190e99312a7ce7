"""Puts together what an update works with: processes, engine, optimizer, schedule, order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from luthier.data.batch import Batch
from luthier.data.branches import collate_rows
from luthier.data.types import Pack, TrainRow
from luthier.fast.engine import Engine, attach
from luthier.fast.settings import EngineSettings, FrozenBase, Recompute
from luthier.objective.base import Objective
from luthier.objective.choose import make_objective
from luthier.recipe.deepspeed_keys import ZERO
from luthier.recipe.optimizers import facts_of
from luthier.recipe.schema import Recipe, TrainSection
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, RecipeError
from luthier.train.distributed.fsdp import Passes, kept_whole_line, reshard, shard
from luthier.train.distributed.host_shards import HostShards
from luthier.train.distributed.sequence import share_sequences
from luthier.train.distributed.sharded_weights import ShardedWeights
from luthier.train.feed import Feed
from luthier.train.host_weights import HostWeights
from luthier.train.masters import Weights
from luthier.train.mismatched import Mismatched
from luthier.train.order import Order
from luthier.train.round_trip import RoundTrip
from luthier.train.split import MicroBatchSize
from luthier.train.step import Trainer
from luthier.train.updates import fresh_optimizer, say_rates, schedule_of, state_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = [
    "batch_shape",
    "deterministic_kernels",
    "engine_settings",
    "fit_base",
    "interval",
    "make_feed",
    "make_order",
    "make_trainer",
]

FITTED_TOKENS = 16_384
"""Tokens that an fp8 base is fitted to."""


def batch_shape(section: TrainSection) -> tuple[int, int]:
    """(sequences of a micro-batch, micro-batches of a step) of one process.

    Raises:
        RecipeError: they are still `auto`.
    """
    batch, accumulation = section.per_device_train_batch_size, section.gradient_accumulation_steps
    if not isinstance(batch, int) or not isinstance(accumulation, int):
        raise RecipeError(code="T470", message="the recipe was not resolved: the batch shape is still `auto`")
    return batch, accumulation


def interval(section: TrainSection, key: Literal["eval_steps", "save_steps"]) -> int | None:
    """Steps between two evaluations or checkpoints; None: only at the end.

    Raises:
        RecipeError: it is still `auto`.
    """
    steps: int | Literal["auto"] | None = getattr(section, key)
    if steps == "auto":
        raise RecipeError(code="T470", message=f"the recipe was not resolved: `train.{key}` is still `auto`")
    return steps


def make_order(section: TrainSection, *, sequences: int, world_size: int, parts: int = 1) -> Order:
    """The order of the run; `parts` processes share each sequence.

    Raises:
        DataError: there is nothing to train on.
    """
    if sequences == 0:
        raise DataError(
            code="T471", message="there is no row to train on", hint="see `data/manifest.json` for dropped rows"
        )
    batch, accumulation = batch_shape(section)
    return Order(
        sequences=sequences, sequences_per_step=batch * accumulation * (world_size // parts),
        num_train_epochs=section.num_train_epochs, max_steps=section.max_steps,
        seed=section.seed, shuffle=section.shuffle,
    )  # fmt: skip


def make_feed(
    accelerator: Accelerator, order: Order, section: TrainSection, *, examples: Sequence[TrainRow],
    packs: Sequence[Pack], size: MicroBatchSize | None, mismatched: Mismatched | None = None, parts: int = 1,
) -> Feed:  # fmt: skip
    """This process' share of the order, as batches; `size` if a smaller micro-batch than the recipe's was found,
    `mismatched` answers where the objective asks for them; `parts` processes share each sequence."""
    return Feed(
        examples=examples, packs=packs, order=order, size=size or MicroBatchSize(batch_shape(section)[0]),
        rank=accelerator.process_index, world_size=accelerator.num_processes, device=accelerator.device,
        mismatched=mismatched, parts=parts,
    )  # fmt: skip


def engine_settings(recipe: Recipe) -> EngineSettings:
    """How the engine runs the layers, from a resolved recipe."""
    train, model = recipe.train, recipe.model
    policies: dict[bool | str, Recompute] = {True: "layer", "selective": "selective"}
    checkpointing = policies.get(train.gradient_checkpointing, "none")
    layers = train.gradient_checkpointing_layers
    base: FrozenBase = "as_loaded"
    if model.quantization == "fp8":
        base = "fp8"
    elif model.quantization == "nf4" and model.dequantize_base is True:
        base = "dequantized"
    return EngineSettings(
        neftune_noise_alpha=recipe.objective.neftune_noise_alpha, recompute=checkpointing,
        recompute_layers=layers if isinstance(layers, int) else None,
        keep_attention=train.keeps_attention, frozen_base=base,
        attending_layers=int(train.gradient_checkpointing_attention) if train.keeps_attention else 0,
    )  # fmt: skip


def make_trainer(
    accelerator: Accelerator, model: PreTrainedModel, recipe: Recipe, *, total_steps: int,
    bring: Callable[[nn.Module], None] | None = None,
) -> Trainer:  # fmt: skip
    """Engine, wrapper, weights, optimizer and schedule for a model prepared by `apply_method`.

    `bring`: for `fsdp2`, see `distributed/fsdp.py: shard`.

    Raises:
        RecipeError: nothing is trained, or the learning rate is still `auto`.
    """
    train = recipe.train
    objective = make_objective(recipe.objective)
    if recipe.distributed.strategy in ZERO and accelerator.num_processes > 1:
        from luthier.train.zero_setup import zero_parts

        parts = zero_parts(accelerator, model, recipe, objective, total_steps)
        engine, wrapper, weights, optimizer, schedule, moments = parts
    else:
        engine, wrapper = _engine(accelerator, model, recipe, objective, bring)
        for part in engine.report:
            note(f"  {part.name}: {part.runs} ({part.reason})")
        whole = kept_whole_line(model)
        if isinstance(wrapper, Passes) and whole is not None:
            note(f"  {whole}")
        sharded, alone = isinstance(wrapper, Passes) and whole is None, accelerator.num_processes == 1
        weights = _weights_of(model, recipe, sharded=sharded, alone=alone)
        weights.whole_updates = facts_of(train.optim).whole
        say_rates(model, weights.tensors, train)
        on_host = _on_host(weights, accelerator.device)
        if on_host:
            weights.run = RoundTrip(accelerator.device)
        optimizer = fresh_optimizer(model, weights, train, device=accelerator.device)
        schedule = schedule_of(optimizer, train, total_steps)
        moments = 0 if on_host else state_bytes(model, weights, train)
    return Trainer(
        accelerator=accelerator,
        engine=engine,
        wrapper=wrapper,
        weights=weights,
        optimizer=optimizer,
        schedule=schedule,
        max_grad_norm=train.max_grad_norm,
        label_smoothing=recipe.objective.label_smoothing,
        objective=objective,
        seed=train.seed,
        parts=recipe.distributed.sequence_parallel_size,
        moments=moments,
    )


def _weights_of(model: PreTrainedModel, recipe: Recipe, *, sharded: bool, alone: bool) -> Weights:
    to_host = recipe.distributed.offload == "optimizer"
    if sharded:
        return HostShards(model) if to_host else ShardedWeights(model)
    return HostWeights(model) if to_host and alone else Weights(model)


def _on_host(weights: Weights, device: torch.device) -> bool:
    """Whether the optimizer works in host memory, beside the device that computes."""
    return bool(next(iter(weights.tensors.values())).device.type != device.type)


def _engine(
    accelerator: Accelerator,
    model: PreTrainedModel,
    recipe: Recipe,
    objective: Objective | None,
    bring: Callable[[nn.Module], None] | None,
) -> tuple[Engine, nn.Module]:
    """The engine and what its loss runs through, by `distributed.strategy`."""
    settings, parts = engine_settings(recipe), recipe.distributed.sequence_parallel_size
    group = share_sequences(accelerator, parts) if parts > 1 else None
    if group is not None:
        settings = replace(settings, cuda_graphs=False)
    if recipe.distributed.strategy == "fsdp2" and accelerator.num_processes > 1:
        root = shard(
            model, accelerator.device, copies=recipe.distributed.dp_replicate_size,
            reshard_after_forward=recipe.distributed.reshard_after_forward, to_host=recipe.distributed.offload == "all",
            frozen_base=settings.frozen_base, bring=bring,
        )  # fmt: skip
        settings = replace(settings, sharded=True, device=accelerator.device)
        engine = root(attach, model, settings, objective=objective)
        reshard(root)
        if group is not None:
            engine.share_sequences(group)
        model.train()
        return engine, engine.distribute(
            lambda module: Passes(root, module), all_passes=True, whole=lambda run: Passes(root, run)()
        )
    engine = attach(model, settings, objective=objective)
    if group is not None:
        engine.share_sequences(group)
    model.train()
    with warnings.catch_warnings():
        # torch 2.13 names a successor of `broadcast_buffers` that does something else.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        wrapper = engine.distribute(lambda module: accelerator.prepare_model(module, device_placement=False))
    return engine, wrapper


def fit_base(trainer: Trainer, examples: Sequence[TrainRow], packs: Sequence[Pack], *, order: Order) -> None:
    """Fit the rounding of an fp8 base to the first rows of the run; nothing with another base.

    The same rows on every process and after every restart, so the base is the same. Call it before anything is
    trained or restored.
    """

    def first_rows() -> Batch:
        rows: list[TrainRow] = []
        tokens = 0
        for sequence in (sequence for step in range(order.total_steps) for sequence in order.step(step)):
            if tokens >= FITTED_TOKENS:
                break
            chosen = [examples[row] for row in packs[sequence].examples]
            rows += chosen
            tokens += sum(len(row) for row in chosen)
        return collate_rows(rows).to(trainer.accelerator.device)

    part = trainer.engine.fit_frozen_base(first_rows)
    if part is not None:
        note(f"  {part.name}: {part.runs} ({part.reason})")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Only deterministic kernels inside, if wanted; the setting found is put back."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
