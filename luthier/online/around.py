"""What is changed for the time of a training and put back: generators, accelerate's state, kernels; and its memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from luthier.model.quiet import first_line
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import OutOfMemory

__all__ = ["deterministic", "explain_memory", "own_accelerator", "own_generators", "peak", "reset_peak"]


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Leave the generators of torch, numpy and Python as they were found; TRL and transformers seed all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def own_accelerator() -> Iterator[None]:
    """accelerate keeps the mixed precision of a trainer for the whole process; the next training chooses its own.

    transformers calls the same reset before it builds a trainer.
    """
    from accelerate.state import AcceleratorState

    try:
        yield
    finally:
        AcceleratorState._reset_state()


@contextmanager
def deterministic(recipe: Recipe) -> Iterator[None]:
    """Only deterministic kernels inside, if the recipe says so."""
    before = torch.are_deterministic_algorithms_enabled()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def explain_memory(recipe: Recipe) -> Iterator[None]:
    """Memory that runs out inside becomes an error with the smallest change that helps."""
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


def reset_peak(device: torch.device) -> None:
    """Measure the peak from now on, where that can be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Most bytes in use: of the allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
