"""How large a micro-batch is, and what happens when one does not fit into memory after all.

The loss of a step is a sum over its tokens divided by a weight that is known beforehand, so a
step may be split into any micro-batches without changing its result. Out of memory in the middle
of a step therefore loses nothing: partial gradients are dropped, the micro-batch halves (by
sequences; a single sequence by documents), and the same step runs again from its beginning with
the same seeds. A single document cannot be split.

Processes agree after their micro-batches and before they exchange any gradient, so one that ran
out of memory takes all of them along and none waits for it. Under FSDP2 they exchange inside of each
pass, and agree before each exchange (`distributed/roll_call.py`).

Units: sequences (packs, or rows without packing), tokens of a micro-batch.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from luthier.train.memory import peak_bytes

if TYPE_CHECKING:
    from luthier.train.distributed.roll_call import RollCall
    from luthier.train.feed import MicroBatch
    from luthier.train.step import Trainer

__all__ = ["Failed", "MicroBatchSize", "TooLarge", "agreeing", "agrees", "release", "require_memory"]


@dataclass(frozen=True, slots=True)
class Failed:
    """A micro-batch that did not fit."""

    sequences: int
    documents: int
    tokens: int
    peak_bytes: int
    """Most memory in use up to then, on its process."""


@dataclass(frozen=True, slots=True)
class MicroBatchSize:
    """Most that a micro-batch may hold."""

    sequences: int
    tokens: int | None = None
    """Only beside one sequence: its documents are put into groups of at most this many tokens."""

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"the documents of one sequence, up to {self.tokens:,} tokens at once"
        return f"{self.sequences} sequence{'s' if self.sequences > 1 else ''}"

    def halved(self, failed: Sequence[Failed]) -> MicroBatchSize | None:
        """A size that splits every micro-batch in `failed` at least in half; None when one is a single document."""
        if any(item.documents < 2 for item in failed):
            return None
        sequences = min(self.sequences, *(max(1, item.sequences // 2) for item in failed))
        alone = [item.tokens for item in failed if item.sequences == 1]
        if not alone:
            return MicroBatchSize(sequences, self.tokens)
        return MicroBatchSize(1, min(self.tokens or alone[0], *(tokens // 2 for tokens in alone)))


class TooLarge(Exception):
    """A micro-batch did not fit into the memory of a device. Nothing was changed; all processes raise it together."""

    def __init__(self, failed: Sequence[Failed]) -> None:
        super().__init__(f"{len(failed)} micro-batch(es) did not fit into memory")
        self.failed = tuple(failed)


def agrees(trainer: Trainer, *, trial: bool = False) -> bool:
    """Whether a process that runs out of memory in a pass takes the others along. Under FSDP2 over several machines
    it does in the `trial` before the first step only, and with torch before 2.13 never."""
    roll = _roll(trainer)
    return not trainer.engine.passes_together or (roll is not None and (trial or roll.in_every_step))


def agreeing(trainer: Trainer, *, trial: bool = False) -> AbstractContextManager[None]:
    """Around a pass with its gradients."""
    roll = _roll(trainer)
    return nullcontext() if roll is None else roll.calling(agrees(trainer, trial=trial))


def _roll(trainer: Trainer) -> RollCall | None:
    roll: RollCall | None = getattr(trainer.wrapper, "roll", None) if trainer.engine.passes_together else None
    return roll


def require_memory(trainer: Trainer, failed: MicroBatch | None, *, given_up: bool = False) -> None:
    """Go on if no process ran out of memory; else drop all gradients everywhere and say so everywhere.

    `given_up`: this process has left its pass because of another one.

    Call it outside the `except` clause of the failure: an exception in flight keeps the activations
    of every frame it went through alive.

    Raises:
        TooLarge: with what did not fit, the same on every process.
    """
    mine = (0, 0, 0, 0)
    roll = _roll(trainer)
    if roll is not None and (failed is not None or given_up):
        roll.leave(missing=failed is not None)
        release(trainer)
    if failed is not None:
        documents, tokens = len(failed.examples), sum(len(example) for example in failed.examples)
        mine = (failed.sequences, max(documents, 1), tokens, peak_bytes(trainer.accelerator.device))
        release(trainer)
    if trainer.world_size == 1:
        found = [mine]
    else:
        tensor = torch.tensor([mine], dtype=torch.int64, device=trainer.accelerator.device)
        found = [tuple(row) for row in trainer.accelerator.gather(tensor).tolist()]
    # A micro-batch that counts nothing has no sequence, but one document.
    all_failed = [Failed(*row) for row in found if row[1] > 0]
    if all_failed:
        trainer.weights.zero_grad()
        raise TooLarge(all_failed)


def release(trainer: Trainer) -> None:
    """Give back what an abandoned pass held: gradients, activations in reference cycles, the allocator's cache."""
    trainer.weights.zero_grad()
    gc.collect()
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
