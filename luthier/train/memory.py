"""Peak memory, and what to do when it runs out."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luthier.recipe.names import takes_from_base
from luthier.recipe.objective_kind import pack_capacity, row_kind
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import OutOfMemory

__all__ = [
    "explain_out_of_memory",
    "no_room_for_moments",
    "out_of_memory",
    "peak_bytes",
    "reset_peak",
    "same_batch",
    "smaller_batch",
]

# What torch's CPU allocator says, as a plain RuntimeError.
_CPU_ALLOCATOR = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory: you tried to allocate")


def reset_peak(device: torch.device) -> None:
    """Start measuring anew, where the device can (CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use so far: of the allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def explain_out_of_memory(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Turn every way of running out of memory into `OutOfMemory` with the smallest change that helps.

    Raises:
        OutOfMemory: exit code 5.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(recipe, device) from error
    except RuntimeError as error:
        if not any(text in str(error) for text in _CPU_ALLOCATOR):
            raise
        raise out_of_memory(recipe, device) from error


def no_room_for_moments(recipe: Recipe, device: torch.device, *, size: int) -> OutOfMemory:
    """The error for a model beside which the optimizer's state of `size` bytes does not fit: no micro-batch helps."""
    eight_bit = recipe.train.optim in ("adamw_torch_fused", "adamw_torch")
    return OutOfMemory(
        code="T440",
        message=(
            f"{size / 2**30:.1f} GiB of optimizer state do not fit beside model and gradients "
            f"({peak_bytes(device) / 2**30:.1f} GiB), whatever the micro-batch"
        ),
        hint="use `train.optim=adamw_8bit`" if eight_bit else same_batch(recipe),
    )


def out_of_memory(recipe: Recipe, device: torch.device, *, document: int | None = None) -> OutOfMemory:
    """The error for a run that cannot go on; `document`: tokens of the single one that did not fit."""
    where = "device" if device.type == "cuda" else "host"
    train = recipe.train
    capacity = pack_capacity(row_kind(recipe.objective.name), recipe.data.max_length)
    shape = (
        f"a single document of {document:,} tokens"
        if document is not None
        else f"per_device_train_batch_size {train.per_device_train_batch_size} x {capacity} tokens"
    )
    return OutOfMemory(
        code="T440",
        message=(
            f"{where} memory ran out after {peak_bytes(device) / 2**30:.1f} GiB ({shape}, "
            f"gradient_checkpointing {str(train.gradient_checkpointing).lower()})"
        ),
        hint=(smaller_batch(recipe) if document is None else None) or same_batch(recipe),
    )


def smaller_batch(recipe: Recipe, *, at_most: int | None = None) -> str | None:
    """The settings for smaller micro-batches of the same step: `at_most` sequences, or half; None: there are none."""
    batch, accumulation = recipe.train.per_device_train_batch_size, recipe.train.gradient_accumulation_steps
    if not isinstance(batch, int) or not isinstance(accumulation, int) or batch == 1:
        return None
    most = batch // 2 if at_most is None else at_most
    size = next(size for size in range(most, 0, -1) if batch * accumulation % size == 0)
    return (
        f"set `train.per_device_train_batch_size={size}` and "
        f"`train.gradient_accumulation_steps={batch * accumulation // size}`: the same result with less memory"
    )


def same_batch(recipe: Recipe) -> str:
    """The smallest change that needs less memory for the same micro-batch."""
    if recipe.train.gradient_checkpointing is not True:
        return "set `train.gradient_checkpointing=true`: the same result, about a third slower"
    if recipe.train.keeps_attention:
        return "set `train.gradient_checkpointing_attention=true`: the same result, slower with long documents"
    if isinstance(recipe.train.gradient_checkpointing_layers, int):
        return "set `train.gradient_checkpointing_layers=null` (all layers): the same result, slower"
    if recipe.method.name == "full":
        return "use `method.name=lora`, or a smaller `data.max_length`"
    if recipe.method.name == "lora" and not takes_from_base(recipe.method.init_lora_weights):
        return "use `method.name=qlora` (4-bit base), or a smaller `data.max_length`"
    return "use a smaller `data.max_length`, or a smaller model"
