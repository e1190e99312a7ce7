"""Which sequences an optimizer step trains on, and which process takes which of them.

A step is a *set* of sequences: the loss is a sum over all of their trained tokens divided by
their number, so how the set is split over processes and micro-batches never changes the result
(beyond rounding). Everything here follows from numbers alone: no state is kept, so a run
resumed at step s asks for step s and gets exactly what the first run would have got.

    epoch 0: permutation of 0..n-1   |s s s s|s s s s|s s|      the last step of an epoch is smaller:
    epoch 1: another permutation     |s s s s|s s s s|s s|      nothing is dropped, nothing is seen twice

Pure: no torch, no data. Units: sequences (packs; rows when packing is off), optimizer steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from luthier.recipe.steps import total_steps

__all__ = ["Order", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of a whole run."""

    sequences: int
    """Sequences of an epoch."""
    sequences_per_step: int
    """Sequences of a full step over all processes and micro-batches."""
    num_train_epochs: float
    """May be a fraction: then the last epoch ends early."""
    max_steps: int | None = None
    """Steps of the run; wins over `num_train_epochs`."""
    seed: int = 0
    shuffle: bool = True
    """False: every epoch goes through the sequences as they come."""

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.sequences_per_step < 1:
            raise ValueError(f"{self.sequences} sequences, {self.sequences_per_step} a step: both must be at least 1")

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every sequence once; the last may be smaller."""
        return -(-self.sequences // self.sequences_per_step)

    @property
    def total_steps(self) -> int:
        """Steps of the run; a part of a step counts as one."""
        return total_steps(self.sequences, self.sequences_per_step, self.num_train_epochs, self.max_steps)

    def step(self, step: int) -> tuple[int, ...]:
        """Sequences of step `step` (from 0), in order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.sequences_per_step
        return self.epoch(epoch)[start : start + self.sequences_per_step]

    def epoch(self, epoch: int) -> tuple[int, ...]:
        """Order of epoch `epoch` (from 0)."""
        if not self.shuffle:
            return _in_order(self.sequences)
        return _permutation(self.sequences, self.seed, epoch)

    def epochs_after(self, steps: int) -> float:
        """Passes over the data after `steps` steps; a whole number exactly where an epoch ends."""
        epochs, within = divmod(steps, self.steps_per_epoch)
        return epochs + min(within * self.sequences_per_step, self.sequences) / self.sequences


@lru_cache(maxsize=2)
def _in_order(sequences: int) -> tuple[int, ...]:
    return tuple(range(sequences))


@lru_cache(maxsize=2)
def _permutation(sequences: int, seed: int, epoch: int) -> tuple[int, ...]:
    # Sorted by random keys, because Python promises the sequence of random() for a seed for
    # ever, and that of shuffle() not. A text seed is hashed, so (1, 23) and (12, 3) differ.
    chooser = random.Random(f"luthier order {seed} {epoch}")
    keys = [chooser.random() for _ in range(sequences)]
    return tuple(sorted(range(sequences), key=keys.__getitem__))


def split(sequences: Sequence[int], *, rank: int, world_size: int, micro_batch: int) -> tuple[tuple[int, ...], ...]:
    """Micro-batches of one process, at most `micro_batch` sequences each.

    Sequences are dealt like cards, so processes differ by one at most. Every process gets the
    same number of micro-batches (collective operations pair up); in the smaller last step of an
    epoch some of them may be empty.
    """
    rounds = max(1, -(-len(range(0, len(sequences), world_size)) // micro_batch))
    mine = sequences[rank::world_size]
    return tuple(tuple(mine[start * micro_batch : (start + 1) * micro_batch]) for start in range(rounds))
