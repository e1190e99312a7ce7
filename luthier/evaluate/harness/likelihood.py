"""Log-likelihood of a continuation after a context, and whether greedy decoding would have said it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.generation.decode import memory_errors, ready_to_generate
from luthier.runtime.console import progress

__all__ = ["Pair", "log_likelihoods"]

Pair = tuple[list[int], list[int]]
"""Token ids of context and continuation; neither is empty."""

MAX_BATCH_TOKENS = 2_048
"""Padded tokens of one forward, whose logits must fit."""


def log_likelihoods(model: Any, pairs: Sequence[Pair], *, batch_size: int, label: str) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, greedy) of every continuation, in the caller's order.

    Raises:
        OutOfMemory: with the setting to lower.
    """
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda index: (-sum(map(len, pairs[index])), index))
    hint = f"lower `evaluate.batch_size` (now {batch_size})"
    with (
        torch.no_grad(),
        ready_to_generate(model) as inner,
        memory_errors(f"scoring choices ({label})", hint=hint),
        progress(label, len(pairs)) as bar,
    ):
        while order:
            width = sum(map(len, pairs[order[0]]))
            size = max(1, min(batch_size, MAX_BATCH_TOKENS // width))
            batch, order = order[:size], order[size:]
            for index, result in zip(batch, _forward(inner, [pairs[index] for index in batch]), strict=True):
                found[index] = result
            bar.advance(len(batch))
    return found


def _forward(inner: Any, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """Right-padded: a causal model never looks at the padding behind a row."""
    rows = [[*context, *continuation] for context, continuation in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    device = inner.device
    logits = inner(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    results = []
    for index, (context, continuation) in enumerate(pairs):
        first = len(context) - 1
        part = torch.log_softmax(logits[index, first : first + len(continuation)].float(), dim=-1)
        targets = torch.tensor(continuation, dtype=torch.long, device=device)
        chosen = part.gather(1, targets[:, None]).squeeze(1).double().sum()
        results.append((float(chosen), bool((part.argmax(dim=-1) == targets).all())))
    return results
