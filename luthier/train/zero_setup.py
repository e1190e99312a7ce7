"""What an update works with under DeepSpeed's ZeRO (`distributed/zero.py`), in the order that DeepSpeed needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.fast.decoder.fp8_shards import pack_fp8
from luthier.fast.engine import Engine, attach
from luthier.fast.loss import inner_model
from luthier.model.packed import WHOLE, pack_linears
from luthier.objective.base import Objective
from luthier.recipe.deepspeed_config import deepspeed_settings, read_config, without_effect
from luthier.recipe.schema import Recipe
from luthier.runtime.console import note
from luthier.train.distributed import zero
from luthier.train.distributed.zero_weights import ZeroWeights
from luthier.train.masters import Weights
from luthier.train.optim import expected_state_bytes
from luthier.train.schedule import Schedule
from luthier.train.setup import engine_settings
from luthier.train.updates import optimizer_over, say_rates, schedule_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["zero_parts"]


def zero_parts(
    accelerator: Accelerator, model: PreTrainedModel, recipe: Recipe, objective: Objective | None, total_steps: int
) -> tuple[Engine, nn.Module, Weights, torch.optim.Optimizer, Schedule, int]:
    """As `make_trainer` needs them, with DeepSpeed between model and optimizer.

    The optimizer is torch's, over our groups (decay, rates) as they are everywhere, and DeepSpeed puts its partitions
    in the place of the parameters: one definition of what AdamW is. Groups and schedule are made before that.
    """
    train = recipe.train
    _pack(model, recipe, accelerator.device)
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    say_rates(model, tensors, train)
    shapes = {name: parameter.shape for name, parameter in tensors.items()}
    moments = expected_state_bytes(tensors, train.optim, train.optim_args) // accelerator.num_processes
    optimizer = optimizer_over(model, tensors, train, own_kernel=False)
    schedule = schedule_of(optimizer, train, total_steps)
    settings = deepspeed_settings(
        recipe, dtype=str(model.dtype).removeprefix("torch."), processes=accelerator.num_processes,
        hidden_size=model.get_input_embeddings().weight.shape[1], pin=accelerator.device.type == "cuda",
    )  # fmt: skip
    if recipe.distributed.deepspeed_config is not None:
        for line in without_effect(read_config(recipe.distributed.deepspeed_config)[0]):
            note(f"  {recipe.distributed.deepspeed_config}: no effect here: {line}")
    partitioned = zero.partition(
        model,
        optimizer,
        settings,
        accelerator.device,
        file=recipe.distributed.deepspeed_config or "distributed",
    )
    sharded = replace(engine_settings(recipe), sharded=True, loose_adapters=True)
    engine = partitioned.module.run(partitioned, lambda: attach(model, sharded, objective=objective))
    model.train()
    for part in engine.report:
        note(f"  {part.name}: {part.runs} ({part.reason})")
    wrapper = engine.distribute(
        lambda module: zero.Passes(partitioned, module), all_passes=True,
        whole=lambda run: zero.run_alone(partitioned, run),
    )  # fmt: skip
    return engine, wrapper, ZeroWeights(model, partitioned, shapes), optimizer, schedule, moments


def _pack(model: PreTrainedModel, recipe: Recipe, device: torch.device) -> None:
    """Matrices in 4 bits as DeepSpeed's partitions take them; those that wait in host memory to be quantised are.

    Of an fp8 base the 8-bit copies go into the partitions of ZeRO-3; below it weights are whole, and the engine rounds
    them when it is attached, as for one process.
    """
    parted, base = recipe.distributed.strategy == "zero3", engine_settings(recipe).frozen_base
    resting = torch.device("cpu") if parted else device
    if parted and base == "fp8":
        for layer in getattr(inner_model(model).get_decoder(), "layers", ()):
            pack_fp8(layer, device, storage=WHOLE, rests_on=resting)
    pack_linears(model, device, keep_unpacked=base == "dequantized", storage=WHOLE, rests_on=resting)
