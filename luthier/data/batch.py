"""The one batch type: documents end to end in one flat sequence, no padding.

Labels are not a second copy of the ids with holes: the batch names the positions whose *next*
token is trained (`source_index`) and those tokens (`target_ids`), so the head is computed for
these rows only, nothing is ever shifted twice, and no target can lie in another document.

    ids        a0 a1 a2 a3 | b0 b1 b2          (a2, a3 and b2 are trained)
    positions   0  1  2  3 |  0  1  2
    source_index    1  2        5              target_ids  a2 a3 b2

T tokens, D documents, S supervised targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from luthier.data.types import Example, RowRef

__all__ = ["Answers", "Batch", "Part", "collate"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """The answers in a batch of preferences (`branches.py`), numbered from 0 in the order of the sequence.

    A answers, N rows.
    """

    of_target: Tensor
    """(S,) int64, ascending: the answer each target belongs to."""
    lengths: Tensor
    """(A,) float32: targets of each answer."""
    last_index: Tensor
    """(A,) int64: position of the last token of each answer."""
    chosen: Tensor
    """(N,) int64: the answer each row prefers; of rated rows its only one."""
    rejected: Tensor
    """(N,) int64: the other answer of each pair; of rated rows again the only one."""
    labels: Tensor | None = None
    """(N,) float32, 1 = desired, 0 = not; None: pairs."""
    margins: Tensor | None = None
    """(N,) float32; None: no row has one."""
    reference: Tensor | None = None
    """(A,) float32: log-probabilities under the reference model; None: not known."""

    def to(self, device: torch.device | str) -> Answers:
        """The same with its tensors on `device`."""
        return replace(self, **{
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        })  # fmt: skip


class Part(NamedTuple):
    """Which part of a sequence that several processes share (`sequence_parts.py`)."""

    number: int
    """From 0, in the order of the sequence."""
    of: int
    """Number of parts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Some documents as one flat sequence, and what is trained in them."""

    input_ids: Tensor
    """(T,) int64."""
    position_ids: Tensor
    """(T,) int64; restart at 0 in each document."""
    cu_seqlens: Tensor
    """(D + 1,) int32; document d is [cu_seqlens[d], cu_seqlens[d + 1])."""
    doc_lengths: tuple[int, ...]
    max_doc: int
    """Tokens of the longest document; a plain int, so that no kernel launch waits for the device."""
    doc_ids: Tensor
    """(T,) int32: number of each token's document, from 0."""
    source_index: Tensor
    """(S,) int64: rows of the hidden states whose next token is trained."""
    target_ids: Tensor
    """(S,) int64: input_ids[source_index + 1], always of the same document."""
    target_weights: Tensor
    """(S,) float32, non-zero."""
    weight_sum: float
    """Sum of `target_weights`; a plain float, added up over micro-batches and ranks to normalise the loss."""
    refs: tuple[RowRef, ...]
    """Where each document came from."""
    tokens: int
    """T."""
    trained_tokens: int
    """S."""
    prefixes: tuple[tuple[int, int], ...] = ()
    """(start, tokens) for each document of what it sees besides itself: the first tokens of an earlier document, whose
    positions it goes on from; (0, 0): nothing. Empty: no document has one."""
    answers: Answers | None = None
    """Of a batch of preferences."""
    rows: Tensor | None = None
    """(R,) int64, ascending: the different rows in `source_index`, which then names some twice (the last token of a
    shared prompt); None: they differ and ascend as they are."""
    row_of_target: Tensor | None = None
    """(S,) int64: source_index = rows[row_of_target]; None beside `rows`."""
    part: Part | None = None
    """The tokens and targets are one part of the sequence; `cu_seqlens`, `doc_lengths`, `max_doc` and `refs` are of
    the whole. `input_ids` may have more rows than `tokens` counts. None: the whole."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names: tuple[str, ...] = ("input_ids", "position_ids", "cu_seqlens", "doc_ids")
        names += ("source_index", "target_ids", "target_weights")
        names += ("rows", "row_of_target") if self.rows is not None else ()
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        answers = None if self.answers is None else self.answers.to(device)
        return replace(self, answers=answers, **moved)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay documents end to end.

    A target is a token with a non-zero weight; it is predicted from the token before it. The
    first token of a document has no such token: its weight is 0 by contract.

    Raises:
        ValueError: no example, an empty one, ids and weights of different lengths, or a first token with a weight.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    for example in examples:
        if not len(example.ids) or len(example.ids) != len(example.weights) or example.weights[0] != 0:
            raise ValueError(
                f"{example.ref}: {len(example.ids)} ids with {len(example.weights)} weights; a document needs at "
                "least one token, a weight for each, and weight 0 for the first (nothing predicts it)"
            )
    lengths = np.array([len(example.ids) for example in examples], dtype=np.int64)
    ids = np.concatenate([np.asarray(example.ids, dtype=np.int64) for example in examples])
    weights = np.concatenate([np.asarray(example.weights, dtype=np.float32) for example in examples])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    targets = np.flatnonzero(weights)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths)),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        doc_lengths=tuple(lengths.tolist()),
        max_doc=int(lengths.max()),
        doc_ids=torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)),
        source_index=torch.from_numpy(targets - 1),
        target_ids=torch.from_numpy(ids[targets]),
        target_weights=torch.from_numpy(weights[targets]),
        weight_sum=math.fsum(weights[targets].tolist()),
        refs=tuple(example.ref for example in examples),
        tokens=len(ids),
        trained_tokens=len(targets),
    )
