"""Answers behind the prompts of other rows: what KTO's reference point is measured on.

In a step of rows (x1, y1), ..., (xn, yn) the pairs are (x1, yn), (x2, y1), ..., (xn, yn-1), as in TRL: the same
prompts and answers as in the step, put together otherwise. Which rows a step has is known beforehand (`order.py`), so
the log-probabilities under the reference are computed before the first step, for every pair of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from luthier.data.batch import Batch
from luthier.data.branches import collate_branched
from luthier.data.types import Branched

__all__ = ["Mismatched", "partners"]


def partners(rows: Sequence[int]) -> list[tuple[int, int]]:
    """(row of the prompt, row of the answer) for the rows of a step; none for a single row, which has no other."""
    return list(zip(rows, [rows[-1], *rows[:-1]], strict=True)) if len(rows) > 1 else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatched:
    """Pairs of prompts and answers of different rows, with their reference."""

    rows: Sequence[Branched]
    max_length: int
    """Tokens of a prompt with its answer; longer answers lose their end."""
    reference: Mapping[tuple[int, int], float]

    def batch(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        """The pairs as one batch of rated answers, with their reference."""
        return collate_branched([
            replace(join(self.rows, pair, self.max_length), reference=[self.reference[pair]]) for pair in pairs
        ])  # fmt: skip


def join(rows: Sequence[Branched], pair: tuple[int, int], max_length: int) -> Branched:
    """The prompt of one row with the answer of another, cut to `max_length` but never before its first target."""
    prompt, answer = rows[pair[0]], rows[pair[1]]
    ids, weights = answer.answers[0], answer.weights[0]
    first = next(place for place, weight in enumerate(weights) if weight)
    size = max(max_length - len(prompt.prompt), first + 1)
    return replace(
        prompt, answers=[ids[:size]], weights=[weights[:size]], label=True, margin=None, reference=None, notes=()
    )
