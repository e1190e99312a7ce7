"""Preferences as one flat batch: the answers to a prompt share it instead of repeating it.

    ids        p0 p1 p2 c0 c1 | r0 r1 r2        one row: prompt, chosen answer | rejected answer
    positions   0  1  2  3  4 |  3  4  5        the second document goes on from the prompt
    prefixes         (0, 0)   |  (0, 3)         and sees the first 3 tokens of the first one
    targets    c0 c1 r0 r1 r2 from the rows  p2 c0 p2 r0 r1      (p2 twice)

To each answer this is the sequence prompt + answer: the tokens it sees and their positions are the same, so its
log-probabilities are, too, within rounding. A prompt of p tokens with answers of c and r costs p + c + r instead of
2p + c + r.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from luthier.data.batch import Answers, Batch, collate
from luthier.data.types import Branched, Example, TrainRow

__all__ = ["collate_branched", "collate_rows"]


def collate_branched(rows: Sequence[Branched]) -> Batch:
    """Lay rows end to end: the first answer behind its prompt, each other answer as a document of its own.

    `weight_sum` is the number of rows: a loss over preferences is a mean over rows.

    Raises:
        ValueError: no row, or one that breaks what `Branched` promises.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    prefixes: list[tuple[int, int]] = []
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    of_target: list[int] = []
    last: list[int] = []
    pairs: list[tuple[int, int]] = []
    for row in rows:
        _check(row)
        start, shared = len(ids), len(row.prompt)
        pairs.append((len(last), len(last) + len(row.answers) - 1))
        for place, (answer, answer_weights) in enumerate(zip(row.answers, row.weights, strict=True)):
            lead = list(row.prompt) if place == 0 else []
            begin = len(ids) + len(lead)
            ids += [*lead, *answer]
            positions += [*range(len(lead)), *range(shared, shared + len(answer))]
            lengths.append(len(lead) + len(answer))
            prefixes.append((0, 0) if place == 0 else (start, shared))
            for offset, (token, weight) in enumerate(zip(answer, answer_weights, strict=True)):
                if weight:
                    sources.append(begin + offset - 1 if offset else start + shared - 1)
                    targets.append(token)
                    weights.append(weight)
                    of_target.append(len(last))
            last.append(len(ids) - 1)
    answers = _answers(rows, of_target, last, pairs)
    flat = np.array(ids, dtype=np.int64)
    ends = np.cumsum(lengths)
    taken, row_of_target = np.unique(np.array(sources, dtype=np.int64), return_inverse=True)
    return Batch(
        input_ids=torch.from_numpy(flat),
        position_ids=torch.tensor(positions, dtype=torch.int64),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        doc_lengths=tuple(lengths),
        max_doc=max(lengths),
        doc_ids=torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)),
        source_index=torch.tensor(sources, dtype=torch.int64),
        target_ids=torch.tensor(targets, dtype=torch.int64),
        target_weights=torch.tensor(weights, dtype=torch.float32),
        weight_sum=float(len(rows)),
        refs=tuple(row.ref for row in rows for _ in row.answers),
        tokens=len(ids),
        trained_tokens=len(targets),
        prefixes=tuple(prefixes) if any(tokens for _, tokens in prefixes) else (),
        answers=answers,
        rows=torch.from_numpy(taken),
        row_of_target=torch.from_numpy(row_of_target.astype(np.int64)),
    )


def collate_rows(rows: Sequence[TrainRow]) -> Batch:
    """The batch of rows of either type.

    Raises:
        ValueError: as `collate` and `collate_branched`; or rows of both types.
    """
    branched = [row for row in rows if isinstance(row, Branched)]
    if not branched:
        return collate([row for row in rows if isinstance(row, Example)])
    if len(branched) != len(rows):
        raise ValueError("a batch holds rows of preferences, or rows of single answers, not both")
    return collate_branched(branched)


def _answers(
    rows: Sequence[Branched], of_target: Sequence[int], last: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> Answers:
    labels = [row.label for row in rows if row.label is not None]
    margins = [row.margin for row in rows]
    known = all(row.reference is not None for row in rows)
    reference = [value for row in rows for value in row.reference or ()]
    return Answers(
        of_target=torch.tensor(of_target, dtype=torch.int64),
        lengths=torch.bincount(torch.tensor(of_target, dtype=torch.int64), minlength=len(last)).float(),
        last_index=torch.tensor(last, dtype=torch.int64),
        chosen=torch.tensor([first for first, _ in pairs], dtype=torch.int64),
        rejected=torch.tensor([second for _, second in pairs], dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.float32) if labels else None,
        margins=torch.tensor([margin or 0.0 for margin in margins], dtype=torch.float32) if any(margins) else None,
        reference=torch.tensor(reference, dtype=torch.float32) if known else None,
    )  # fmt: skip


def _check(row: Branched) -> None:
    """A row that breaks the promises of its type would train something else than it says."""
    sizes = [len(answer) for answer in row.answers]
    rated = row.label is not None
    wrong = (
        "its prompt is empty" if not len(row.prompt)
        else f"it has {len(sizes)} answers, not {1 if rated else 2}" if len(sizes) != (1 if rated else 2)
        else "an answer is empty" if not all(sizes)
        else "an answer's weights do not fit its ids" if sizes != [len(weights) for weights in row.weights]
        else "an answer has no target" if not all(any(weights) for weights in row.weights)
        else "its reference does not fit its answers" if row.reference and len(row.reference) != len(sizes)
        else None
    )  # fmt: skip
    if wrong:
        raise ValueError(f"{row.ref}: {wrong}")
