"""Turns the sequences of a step into batches on the device.

A micro-batch without sequences (the last step of an epoch over several processes) becomes one
short document whose loss counts nothing: the process still takes part in every collective
operation, and its gradient is exactly zero.

Pure: a `Feed` of a smaller `size` gives the same documents of a step in the same order, in more
micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, islice, pairwise
from typing import TypeVar

import torch

from luthier.data.batch import Answers, Batch
from luthier.data.branches import collate_rows
from luthier.data.sequence_parts import take_part
from luthier.data.types import Pack, TrainRow
from luthier.train.mismatched import Mismatched, partners
from luthier.train.order import Order, split
from luthier.train.split import MicroBatchSize

__all__ = ["Feed", "MicroBatch", "by_token_budget", "without_weight"]


Row = TypeVar("Row", bound=TrainRow)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass."""

    index: int
    """Position within the step, from 0."""
    batch: Batch
    """In host memory."""
    examples: tuple[TrainRow, ...]
    """The rows in the batch; empty for a batch that counts nothing."""
    sequences: int
    """Sequences that the documents are of; 0 for a batch that counts nothing."""
    mismatched: Batch | None = None
    """The rows' prompts with answers of other rows, where the objective asks for them."""

    def pin(self) -> MicroBatch:
        """The same with its tensors in page-locked memory, from where a copy to the device waits for nobody."""
        mismatched = None if self.mismatched is None else _pinned(self.mismatched)
        return replace(self, batch=_pinned(self.batch), mismatched=mismatched)


def _pinned(batch: Batch) -> Batch:
    answers = None if batch.answers is None else replace(batch.answers, **_pinned_tensors(batch.answers))
    return replace(batch, answers=answers, **_pinned_tensors(batch))


def _pinned_tensors(record: Batch | Answers) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value.pin_memory() for name, value in values.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True, slots=True)
class Share:
    """What goes into one micro-batch."""

    sequences: int
    rows: tuple[int, ...]
    """Indices of examples."""

    def tokens(self, examples: Sequence[TrainRow]) -> int:
        """Tokens of all rows."""
        return sum(len(examples[row]) for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """All batches of this process."""

    examples: Sequence[TrainRow]
    packs: Sequence[Pack]
    order: Order
    size: MicroBatchSize
    rank: int
    world_size: int
    device: torch.device
    mismatched: Mismatched | None = None
    """Answers of other rows, where the objective asks for them."""
    parts: int = 1
    """Processes that share each sequence; sequences are dealt to groups of so many."""

    @property
    def groups(self) -> int:
        """Of processes that share sequences."""
        return self.world_size // self.parts

    def step(self, step: int) -> list[MicroBatch]:
        """Micro-batches of this process in step `step` (from 0)."""
        return [self.collate(index, share, step) for index, share in enumerate(self.shares(step))]

    def shares(self, step: int) -> list[Share]:
        """What goes into each micro-batch of this process in step `step`; as many on every process."""
        sequences = self.order.step(step)
        mine = self._shares(sequences, self.rank // self.parts)
        if self.size.tokens is None or self.groups == 1:
            return mine
        most = max(len(self._shares(sequences, group)) for group in range(self.groups))
        return mine + [Share(0, ())] * (most - len(mine))

    def collate(self, index: int, share: Share, step: int) -> MicroBatch:
        """The batch of a share of step `step`."""
        examples = tuple(self.examples[row] for row in share.rows)
        if examples:
            mismatched = self._mismatched(share, step)
            return MicroBatch(index, self._my_part(collate_rows(examples)), examples, share.sequences, mismatched)
        shortest = min((self.examples[row] for row in self.rows(step)), key=len)
        return MicroBatch(index, self._my_part(without_weight(collate_rows([shortest]))), (), 0)

    def rows(self, step: int) -> list[int]:
        """Rows of step `step` over all processes and micro-batches, in order."""
        return [row for sequence in self.order.step(step) for row in self.packs[sequence].examples]

    def _my_part(self, batch: Batch) -> Batch:
        return take_part(batch, index=self.rank % self.parts, size=self.parts)

    def _mismatched(self, share: Share, step: int) -> Batch | None:
        if self.mismatched is None:
            return None
        wanted = set(share.rows)
        pairs = [pair for pair in partners(self.rows(step)) if pair[0] in wanted]
        return self.mismatched.batch(pairs) if pairs else None

    def _shares(self, sequences: Sequence[int], group: int) -> list[Share]:
        dealt = split(sequences, rank=group, world_size=self.groups, micro_batch=self.size.sequences)
        shares = [
            Share(len(group), tuple(row for sequence in group for row in self.packs[sequence].examples))
            for group in dealt
        ]
        if self.size.tokens is None:
            return shares
        return [part for share in shares for part in self._by_documents(share, self.size.tokens)]

    def _by_documents(self, share: Share, budget: int) -> list[Share]:
        lengths = [len(self.examples[row]) for row in share.rows]
        starts = list(accumulate((len(group) for group in groups_within(lengths, budget)), initial=0))
        return [Share(share.sequences, share.rows[start:end]) for start, end in pairwise(starts)] or [share]


def without_weight(batch: Batch) -> Batch:
    """The same documents, counting nothing: loss and gradient are zero, counts are zero.

    Of preferences no row is left to compare, so that a sum over rows is an empty one.
    """
    answers = batch.answers
    if answers is not None:
        rows = {name: getattr(answers, name) for name in ("chosen", "rejected", "labels", "margins")}
        answers = replace(answers, **{name: value[:0] for name, value in rows.items() if value is not None})
    return replace(
        batch, target_weights=torch.zeros_like(batch.target_weights), weight_sum=0.0, tokens=0, trained_tokens=0,
        answers=answers,
    )  # fmt: skip


def by_token_budget(examples: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Neighbouring examples in groups of at most `budget` tokens (a longer one is alone)."""
    rest = iter(examples)
    for group in groups_within([len(example) for example in examples], budget):
        yield list(islice(rest, len(group)))


def groups_within(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Neighbouring lengths in groups whose sum is at most `budget` (a longer one is alone)."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= budget:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups
