"""Turns the sequences of a step into batches on the device.

A micro-batch without sequences (the last step of an epoch over several processes) becomes one
short document whose loss counts nothing: the process still takes part in every collective
operation, and its gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from luthier.data.batch import Batch, collate
from luthier.data.types import Example, Pack
from luthier.train.order import Order, split

__all__ = ["Feed", "MicroBatch", "by_token_budget", "without_weight"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass."""

    index: int
    """Position within the step, from 0."""
    batch: Batch
    """In host memory."""
    examples: tuple[Example, ...]
    """The documents in the batch; empty for a batch that counts nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """All batches of this process."""

    examples: Sequence[Example]
    packs: Sequence[Pack]
    order: Order
    micro_batch: int
    """Sequences of a micro-batch."""
    rank: int
    world_size: int
    device: torch.device

    def step(self, step: int) -> list[MicroBatch]:
        """Micro-batches of this process in step `step` (from 0)."""
        sequences = self.order.step(step)
        shares = split(sequences, rank=self.rank, world_size=self.world_size, micro_batch=self.micro_batch)
        return [self._collate(index, share, sequences) for index, share in enumerate(shares)]

    def _collate(self, index: int, share: Sequence[int], sequences: Sequence[int]) -> MicroBatch:
        examples = tuple(self.examples[row] for sequence in share for row in self.packs[sequence].examples)
        if examples:
            return MicroBatch(index, collate(examples), examples)
        rows = [row for sequence in sequences for row in self.packs[sequence].examples]
        shortest = min((self.examples[row] for row in rows), key=len)
        return MicroBatch(index, without_weight(collate([shortest])), ())


def without_weight(batch: Batch) -> Batch:
    """The same documents, counting nothing: loss and gradient are zero, counts are zero."""
    return replace(
        batch, target_weights=torch.zeros_like(batch.target_weights), weight_sum=0.0, tokens=0, trained_tokens=0
    )


def by_token_budget(examples: Sequence[Example], budget: int) -> Iterator[list[Example]]:
    """Neighbouring examples in groups of at most `budget` tokens (a longer one is alone)."""
    group: list[Example] = []
    tokens = 0
    for example in examples:
        if group and tokens + len(example) > budget:
            yield group
            group, tokens = [], 0
        group.append(example)
        tokens += len(example)
    if group:
        yield group
