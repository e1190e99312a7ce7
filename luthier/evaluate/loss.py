"""Held-out loss: negative log-likelihood of the references, row by row.

One plain forward per batch of rows, none of the training engine: this is also what the engine is
held against. Sums are kept per row, in float64, and divided once at the end, so the batch size
cannot move the result (a mean of batch means does: transformers#39241).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.data.types import Example
from luthier.generation.decode import memory_errors, ready_to_generate
from luthier.runtime.console import progress

__all__ = ["RowLoss", "row_losses"]

# Tokens of one forward: their logits (tokens x vocabulary) must fit; 2,048 x 128k in float32 are 1 GiB.
MAX_BATCH_TOKENS = 2_048


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Loss of one row."""

    nll: float
    """Sum over its trained tokens of weight x negative log-likelihood, in nats."""
    weight: float
    """Sum of the weights."""
    tokens: int
    """Trained tokens."""


def row_losses(model: Any, examples: Sequence[Example], *, batch_size: int, label: str = "loss") -> list[RowLoss]:
    """Loss of each example, in the caller's order.

    Args:
        model: Causal language model, with or without adapters; put into eval mode for the while.
        examples: Tokens and weights; a token's weight is its weight as a target.
        batch_size: Most rows in one forward.
        label: Shown beside the progress bar.

    Raises:
        OutOfMemory: with the setting to lower.
    """
    losses: list[RowLoss | None] = [None] * len(examples)
    hint = f"lower `evaluate.batch_size` (now {batch_size})"
    with (
        torch.no_grad(),
        ready_to_generate(model) as inner,
        memory_errors(f"scoring references ({label})", hint=hint),
        progress(label, len(examples)) as bar,
    ):
        for batch in _batches(examples, batch_size):
            for index, loss in zip(batch, _forward(inner, [examples[index] for index in batch]), strict=True):
                losses[index] = loss
            bar.advance(len(batch))
    return [loss for loss in losses if loss is not None]


def _batches(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices, longest rows first, padded tokens bounded."""
    batch: list[int] = []
    for index in sorted(range(len(examples)), key=lambda index: (-len(examples[index].ids), index)):
        width = len(examples[batch[0] if batch else index].ids)
        if batch and (len(batch) >= batch_size or (len(batch) + 1) * width > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _forward(inner: Any, examples: Sequence[Example]) -> list[RowLoss]:
    """Right-padded forward: a causal model never looks at the padding behind a row."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), width, dtype=torch.long)
    weights = torch.zeros(len(examples), width, dtype=torch.float64)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(list(example.ids))
        mask[row, :length] = 1
        weights[row, :length] = torch.tensor(list(example.weights), dtype=torch.float64)
    device = inner.device
    logits = inner(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    rows, columns = (weights[:, 1:] != 0).nonzero(as_tuple=True)
    nll = _nll(logits[rows.to(device), columns.to(device)], ids[rows, columns + 1].to(device)).cpu()
    weight = weights[rows, columns + 1]
    results = []
    for row in range(len(examples)):
        mine = rows == row
        results.append(RowLoss(float((nll[mine] * weight[mine]).sum()), float(weight[mine].sum()), int(mine.sum())))
    return results


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax at the targets: (S, V), (S,) -> (S,) float64."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
