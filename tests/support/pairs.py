"""Rows of preferences from seeds, and the same numbers computed plainly, one answer at a time.

`unshared` lays a row out without sharing: each answer is a document of its own behind a copy of the prompt. It is the
plain reference of the layout in which answers share their prompt; both give the same `Answers`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from luthier.data.batch import Batch, collate
from luthier.data.branches import collate_branched
from luthier.data.pack import one_by_one, pack
from luthier.data.types import Branched, Example, Pack, RowRef

VOCABULARY = 600


def pairs(n: int = 24, *, seed: int = 0, low: int = 3, high: int = 24, context: bool = False) -> list[Branched]:
    """Pairs with a wide spread of lengths; with `context` some tokens inside answers do not count."""
    chooser = random.Random(seed)
    rows = []
    for line in range(n):
        prompt = [chooser.randrange(3, VOCABULARY) for _ in range(chooser.randint(low, high))]
        answers = [[chooser.randrange(3, VOCABULARY) for _ in range(chooser.randint(low, high))] for _ in range(2)]
        weights = [[1.0, *(float(not context or chooser.random() < 0.7) for _ in answer[1:])] for answer in answers]
        rows.append(Branched(prompt=prompt, answers=answers, weights=weights, ref=RowRef("pairs.jsonl", line + 1)))
    return rows


def rated(n: int = 24, *, seed: int = 0, **settings: Any) -> list[Branched]:
    """Rated answers, about two in three desired."""
    return [
        replace(row, answers=row.answers[:1], weights=row.weights[:1], label=line % 3 != 1)
        for line, row in enumerate(pairs(n, seed=seed, **settings))
    ]


@dataclass
class Preferences:
    """What `prepare` hands to `fit`."""

    train: list[Branched]
    validation: list[Branched]
    packs: list[Pack]
    manifest: dict[str, Any] = field(default_factory=dict)


def preferences(rows: list[Branched] | None = None, *, packed: bool = False, validation: int = 0) -> Preferences:
    """Prepared rows; packs of at most 256 tokens, or one row each. Held-out rows are of the same kind."""
    train = pairs() if rows is None else rows
    lengths = [len(row) for row in train]
    kind = pairs if train[0].label is None else rated
    held_out = kind(validation, seed=99) if validation else []
    return Preferences(train, held_out, pack(lengths, 256) if packed else one_by_one(lengths))


def unshared(rows: list[Branched]) -> Batch:
    """The batch of some rows in which every answer has its own copy of the prompt."""
    shared = collate_branched(rows)
    assert shared.answers is not None
    flat = collate([
        Example(ids=[*row.prompt, *answer], weights=[0.0] * len(row.prompt) + list(weights), ref=row.ref)
        for row in rows
        for answer, weights in zip(row.answers, row.weights, strict=True)
    ])  # fmt: skip
    last = flat.cu_seqlens[1:].long() - 1
    return replace(flat, weight_sum=float(len(rows)), answers=replace(shared.answers, last_index=last))


def log_probs(model: Any, row: Branched) -> torch.Tensor:
    """(answers,) fp64: summed log-probability of each answer's tokens that count, by the model's own forward alone.

    Written from the definition; shares no code with the engine.
    """
    values = []
    for answer, weights in zip(row.answers, row.weights, strict=True):
        ids = torch.tensor([[*row.prompt, *answer]])
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
        found = logits.log_softmax(-1)
        start = len(row.prompt)
        values.append(
            sum(
                weight * found[start + place - 1, token]
                for place, (token, weight) in enumerate(zip(answer, weights, strict=True))
            )
        )
    return torch.stack([torch.as_tensor(value) for value in values])
