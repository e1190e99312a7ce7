"""Batches from seeds, and the loss of a batch computed document by document through the stock model."""

from __future__ import annotations

import random

import torch
from torch.nn.functional import log_softmax

from luthier.data.batch import Batch, collate
from luthier.data.types import Branched, Example, RowRef


def make_batch(lengths, *, vocab=600, seed=0, share=0.6, first=None) -> Batch:
    """Random ids and per-token weights; `first` replaces the ids of document 0."""
    chooser = random.Random(seed)
    examples = []
    for index, length in enumerate(lengths):
        ids = [chooser.randrange(3, vocab) for _ in range(length)]
        weights = [0.0] + [chooser.choice([1.0, 0.5, 2.0]) * (chooser.random() < share) for _ in range(length - 1)]
        if index == 0 and first is not None:
            ids = list(first)
        examples.append(Example(ids=ids, weights=weights, ref=RowRef("batch", index + 1)))
    return collate(examples)


def documents(batch: Batch):
    """(ids (1, L), weights (L,)) of each document, weights as targets."""
    weights = torch.zeros(batch.tokens, device=batch.input_ids.device)
    weights[batch.source_index + 1] = batch.target_weights
    return list(zip(batch.input_ids.split(batch.doc_lengths), weights.split(batch.doc_lengths), strict=True))


def one_by_one(model, batch: Batch, *, label_smoothing=0.0):
    """Sum of weighted losses, each document alone through `model(...)`; (loss, correct)."""
    total, correct = torch.zeros((), device=batch.input_ids.device), 0
    for ids, weights in documents(batch):
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        log_probs = log_softmax(logits[:-1], dim=-1)
        nll = -log_probs.gather(1, ids[1:, None]).squeeze(1)
        loss = (1 - label_smoothing) * nll - label_smoothing * log_probs.mean(-1)
        total = total + (loss * weights[1:]).sum()
        correct += int(((logits[:-1].argmax(-1) == ids[1:]) & (weights[1:] > 0)).sum())
    return total, correct


def gradients(model) -> dict[str, torch.Tensor]:
    """Gradients of the trained parameters by name; clears them."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative Frobenius error."""
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm().clamp_min(1e-12))


def assert_same_gradients(got: dict, want: dict, limit: float) -> None:
    """Same names; relative error of each at most `limit`. A tiny tensor is measured against the largest."""
    assert got.keys() == want.keys()
    floor = 1e-6 * max(float(g.double().norm()) for g in want.values())
    for name, reference in want.items():
        error = float((got[name].double() - reference.double()).norm())
        size = max(float(reference.double().norm()), floor)
        assert error <= limit * size, f"{name}: {error / size:.2e}"


def make_pairs(sizes, *, vocab=600, seed=0) -> list[Branched]:
    """Rows of (prompt, chosen, rejected) lengths with random ids; about a fifth of the answers' tokens are context."""
    chooser = random.Random(seed)
    rows = []
    for number, (shared, *answers) in enumerate(sizes):
        draw = [[chooser.randrange(3, vocab) for _ in range(length)] for length in (shared, *answers)]
        weights = [[1.0, *(float(chooser.random() < 0.8) for _ in range(length - 1))] for length in answers]
        rows.append(Branched(prompt=draw[0], answers=draw[1:], weights=weights, ref=RowRef("pairs", number + 1)))
    return rows


def unshared(rows) -> Batch:
    """Each answer as a document of its own, behind a copy of the prompt."""
    return collate(
        [
            Example(ids=[*row.prompt, *answer], weights=[0.0] * len(row.prompt) + list(weights), ref=row.ref)
            for row in rows
            for answer, weights in zip(row.answers, row.weights, strict=True)
        ]
    )
