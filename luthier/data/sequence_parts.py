"""A batch in equal parts, one a process, where several processes share its sequence (sequence parallelism).

    whole      a0 a1 a2 a3 a4 | b0 b1 b2 | ..      8 tokens and 2 of padding for 2 processes: documents 5, 3, 2
    part 0     a0 a1 a2 a3 a4                      its rows, and what is trained from these rows:
    part 1     b0 b1 b2 .. ..                      a target belongs to the process that has the token before it

Each part knows where all documents of the whole lie (`cu_seqlens`, `doc_lengths`): attention sees all tokens. Targets
were named before the split (`batch.py`), so that of a part's last row may be the next part's first token. Tokens that
fill up the last part are a document of their own and count nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from luthier.data.batch import Batch, Part

__all__ = ["take_part"]


def take_part(batch: Batch, *, index: int, size: int) -> Batch:
    """Part `index` of `size` of a batch in host memory; the batch itself for a `size` of 1.

    A part without a target gets one that counts nothing, so that its process takes part in the backward pass. The
    sums of `weight_sum`, `tokens` and `trained_tokens` over the parts are those of the batch.

    Raises:
        ValueError: the batch is a part already, or one of preferences.
    """
    if size == 1:
        return batch
    if batch.part is not None or batch.answers is not None or batch.prefixes:
        raise ValueError("only whole batches of single answers are shared by several processes")
    batch = _filled_up(batch, size)
    each = len(batch.input_ids) // size
    start, end = index * each, (index + 1) * each
    here = (batch.source_index >= start) & (batch.source_index < end)
    source, ids, weights = batch.source_index[here] - start, batch.target_ids[here], batch.target_weights[here]
    trained = len(source) if batch.trained_tokens else 0
    if not len(source):
        source, ids, weights = torch.zeros(1, dtype=torch.int64), batch.input_ids[:1], torch.zeros(1)
    cut = slice(start, end)
    return replace(
        batch, input_ids=batch.input_ids[cut], position_ids=batch.position_ids[cut], doc_ids=batch.doc_ids[cut],
        source_index=source, target_ids=ids, target_weights=weights,
        weight_sum=math.fsum(weights.tolist()), tokens=max(0, min(end, batch.tokens) - start),
        trained_tokens=trained, part=Part(index, size),
    )  # fmt: skip


def _filled_up(batch: Batch, size: int) -> Batch:
    """The batch with tokens that count nothing, in a document of their own, up to a multiple of `size` rows."""
    rows = len(batch.input_ids)
    missing = -rows % size
    if not missing:
        return batch
    # A token that the batch has anyway: no other weight of the embeddings is read.
    ids = batch.input_ids[:1].expand(missing)
    number = batch.doc_ids.new_full((missing,), len(batch.doc_lengths))
    return replace(
        batch, input_ids=torch.cat([batch.input_ids, ids]),
        position_ids=torch.cat([batch.position_ids, torch.arange(missing)]),
        cu_seqlens=torch.cat([batch.cu_seqlens, batch.cu_seqlens.new_tensor([rows + missing])]),
        doc_lengths=(*batch.doc_lengths, missing), max_doc=max(batch.max_doc, missing),
        doc_ids=torch.cat([batch.doc_ids, number]),
    )  # fmt: skip
