"""Before the first step: the largest micro-batch of the epoch, forward and backward, measured.

Steps come in the order of `order.py`; running the largest one first would change the result. So
the largest micro-batch runs beforehand and for nothing: no update, its gradients are dropped, the
random numbers put back. What it needs is what the run will need: gradients of the other
micro-batches of a step are there, and room for the optimizer's moments is held while they do not
exist. A lack of memory shows now, not after an hour, and the micro-batch halves at once.

    seconds a step = seconds of the largest micro-batch / its tokens x tokens of a mean step

without the optimizer's update. Everything that is slow once (compilation, allocation) happens in
the pass before the timed ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.recipe.schema import Recipe
from luthier.train.distributed.roll_call import GivenUp
from luthier.train.memory import no_room_for_moments, peak_bytes, reset_peak
from luthier.train.optim_state import state_bytes
from luthier.train.seeds import own_random_numbers
from luthier.train.split import TooLarge, agrees, require_memory
from luthier.train.step import Trainer, forward_backward

if TYPE_CHECKING:
    from luthier.train.feed import Feed, MicroBatch
    from luthier.train.halve import Halving

__all__ = ["Calibration", "calibrate", "largest"]

TIMED_PASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the largest micro-batch came to; of the slowest process and of the one with the highest peak."""

    tokens: int
    documents: int
    seconds: float
    """Forward and backward, median of the timed passes."""
    seconds_per_step: float
    """Of a mean step, without the optimizer's update; see the module's formula."""
    peak_bytes: int
    """With the optimizer's moments. Of the allocator on CUDA, of the whole process elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def calibrate(trainer: Trainer, halving: Halving, *, moments: int) -> Calibration:
    """Measure the largest micro-batch of the present epoch, halving until it fits; nothing is trained.

    Args:
        trainer: As for the steps.
        halving: The batches of the run, and where it is.
        moments: Bytes of the optimizer's state after its first step.

    Raises:
        OutOfMemory: a single document does not fit, or the moments alone do not.
    """
    _require_room(trainer, halving.recipe, moments)
    while True:
        try:
            return _measure(trainer, halving.batches.feed, halving.position.step, moments)
        except TooLarge as error:
            failed = error.failed
        halving.halve(failed, during="calibration")


def largest(feed: Feed, step: int) -> tuple[int, MicroBatch, int]:
    """The micro-batch of this process with most tokens, then most documents, in the epoch of `step` as far as the run
    goes: (its step, the batch, micro-batches of that step)."""
    order = feed.order
    start = step - step % order.steps_per_epoch
    last = min(start + order.steps_per_epoch, order.total_steps)
    # A step's later micro-batches differ in nothing but their place; of equals, the first counts.
    found = (
        (share.tokens(feed.examples), len(share.rows), -number, -index, share)
        for number in range(start, last)
        for index, share in enumerate(feed.shares(number))
    )
    _, _, number, index, share = max(found, key=lambda item: item[:4])
    return -number, feed.collate(-index, share, -number), len(feed.shares(-number))


def _measure(trainer: Trainer, feed: Feed, step: int, moments: int) -> Calibration:
    device = trainer.accelerator.device
    number, item, passes = largest(feed, step)
    scale = trainer.world_size / max(item.batch.weight_sum, 1.0)
    seconds: list[float] = []
    too_large, given_up = None, False
    reset_peak(device)
    with own_random_numbers(device):
        try:
            with _room(max(0, moments - state_bytes(trainer.optimizer)), device):
                for _ in range(1 + TIMED_PASSES):
                    started = _now(device)
                    trainer.weights.begin(passes=passes, processes=trainer.world_size)
                    if passes == 1:
                        trainer.weights.zero_grad()
                    forward_backward(trainer, item, step=number, scale=scale, trial=True)
                    seconds.append(_now(device) - started)
        except torch.OutOfMemoryError:
            if not agrees(trainer, trial=True):
                raise
            too_large = item
        except GivenUp:
            given_up = True
    if agrees(trainer, trial=True):
        require_memory(trainer, too_large, given_up=given_up)
    trainer.weights.zero_grad()
    one, peak = statistics.median(seconds[1:]), peak_bytes(device)
    if trainer.world_size > 1:
        mine = torch.tensor([[one, peak]], dtype=torch.float64, device=device)
        one, peak = trainer.accelerator.gather(mine).max(dim=0).values.tolist()
    tokens = sum(len(example) for example in item.examples)
    return Calibration(
        tokens=tokens, documents=len(item.examples), seconds=one, peak_bytes=round(peak),
        seconds_per_step=one / max(tokens, 1) * _mean_tokens(feed),
    )  # fmt: skip


def _require_room(trainer: Trainer, recipe: Recipe, moments: int) -> None:
    """No smaller micro-batch makes room for moments that do not fit beside the model.

    Processes hold equal states on equal devices; one that has less room ends here, and the launcher ends the others.
    """
    device = trainer.accelerator.device
    try:
        with _room(max(0, moments - state_bytes(trainer.optimizer)), device):
            return
    except torch.OutOfMemoryError:
        pass
    raise no_room_for_moments(recipe, device, size=moments)


def _mean_tokens(feed: Feed) -> float:
    """Tokens of a mean step of one process, or of those that share its sequences."""
    return sum(pack.tokens for pack in feed.packs) / feed.order.steps_per_epoch / feed.groups


@contextmanager
def _room(size: int, device: torch.device) -> Iterator[None]:
    """Hold `size` bytes of the device."""
    held = torch.empty(size, dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del held


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
