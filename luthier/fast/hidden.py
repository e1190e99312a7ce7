"""Hidden states of a batch in one of two layouts, with the same rows in the same order.

    flat     documents end to end through `luthier_varlen`: no padding
    padded   documents padded on the right to a rectangle with a 2-D mask, the model's own attention;
             for models whose attention the flat layout cannot compute

`use_cache=False` always: with a cache, or with an all-ones mask on a flat sequence, transformers
lets packed documents see each other without a word.

Legend: T tokens, D documents, L longest document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from luthier.data.batch import Batch
from luthier.fast.attention import Documents
from luthier.fast.exchange import SequenceGroup

__all__ = ["Layout", "ModelInputs", "Wanted", "model_inputs", "take_rows"]

Layout = Literal["flat", "padded"]


class ModelInputs:
    """Keyword arguments for a transformers model, and the way back from its rows to the rows of the batch."""

    def __init__(self, kwargs: dict[str, Any], rows_t: Tensor | None) -> None:
        self.kwargs = kwargs
        self._rows_t = rows_t

    def rows(self, source_index_s: Tensor) -> Tensor:
        """Positions of flat tokens in the model's output once its first two axes are joined."""
        return source_index_s if self._rows_t is None else self._rows_t[source_index_s]

    def only(self, source_index_s: Tensor, *, last_layer: int) -> None:
        """Let the last decoder layer compute these rows alone; the model's output has just them."""
        documents: Documents = self.kwargs["luthier_documents"]
        self.kwargs["luthier_documents"] = replace(documents, rows=source_index_s, last_layer=last_layer)

    def embedded(self, embeddings: nn.Module) -> Tensor:
        """(1, T, d) embeddings, which the model takes instead of the ids from now on."""
        if "inputs_embeds" not in self.kwargs:
            self.kwargs["inputs_embeds"] = embeddings(self.kwargs.pop("input_ids"))
        embeds: Tensor = self.kwargs["inputs_embeds"]
        return embeds

    def embed(self, embeddings: nn.Module, *, noise_alpha: float) -> None:
        """Replace the ids by embeddings with NEFTune noise (arXiv:2310.05914).

        Noise is uniform in [-1, 1] x alpha / sqrt(L d), L the tokens of the document, d the width.
        """
        ids = self.kwargs.pop("input_ids")
        embedded = embeddings(ids)
        if self._rows_t is None:
            documents: Documents = self.kwargs["luthier_documents"]
            own = torch.diff(documents.cu_seqlens)
            shared = torch.tensor([tokens for _, tokens in documents.prefixes] or 0, device=ids.device)
            rows, group = ids.shape[1], documents.shared
            parts, index = (1, 0) if group is None else (group.size, group.index)
            all_lengths = torch.repeat_interleave(own + shared, own, output_size=rows * parts)
            length_of_token = all_lengths[None, index * rows : (index + 1) * rows]
        else:
            length_of_token = self.kwargs["attention_mask"].sum(dim=1, keepdim=True)
        bound = noise_alpha / (length_of_token * embedded.shape[-1]).float().sqrt()
        noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1.0, 1.0) * bound[..., None]
        self.kwargs["inputs_embeds"] = embedded + noise.to(embedded.dtype)


def model_inputs(batch: Batch, layout: Layout, shared: SequenceGroup | None = None) -> ModelInputs:
    """The batch as the model wants it; of a part of a sequence (`batch.part`) `shared` are those who have the others.

    Raises:
        ValueError: the batch is a part of a sequence, and not the one of this process.
    """
    mine = None if shared is None else (shared.index, shared.size)
    if batch.part is not None and (batch.part != mine or layout != "flat"):
        raise ValueError(f"part {batch.part} of a sequence in process {mine} of its group, {layout} layout")
    if layout == "flat":
        kwargs = {
            "input_ids": batch.input_ids[None],
            "position_ids": batch.position_ids[None],
            "luthier_documents": replace(
                Documents.of(batch.cu_seqlens, batch.doc_lengths, batch.prefixes),
                shared=None if batch.part is None else shared,
            ),
        }
        return ModelInputs({**kwargs, "use_cache": False}, None)
    documents = list(batch.input_ids.split(batch.doc_lengths))
    for place, (lead, tokens) in enumerate(batch.prefixes):  # a shared prompt stands in front of each of its answers
        documents[place] = torch.cat([batch.input_ids[lead : lead + tokens], documents[place]])
    ids = pad_sequence(documents, batch_first=True, padding_value=0)
    mask = pad_sequence([torch.ones_like(document) for document in documents], batch_first=True)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    rows_t = batch.doc_ids.long() * ids.shape[1] + batch.position_ids
    kwargs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
    return ModelInputs(kwargs, rows_t)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows of the hidden states, in the order they are wanted in."""

    rows: Tensor
    """(R,) int64, ascending and different."""
    order: Tensor | None = None
    """(S,) int64: places in `rows`, where one is wanted twice; None: once each, as they come."""

    @classmethod
    def targets(cls, batch: Batch) -> Wanted:
        """The rows that predict the batch's targets."""
        return cls(batch.source_index) if batch.rows is None else cls(batch.rows, batch.row_of_target)

    def arrange(self, hidden_rd: Tensor) -> Tensor:
        """(S, d) from the hidden states of `rows`."""
        return hidden_rd if self.order is None else hidden_rd.index_select(0, self.order)


def take_rows(hidden_td: Tensor, rows_s: Tensor) -> Tensor:
    """hidden[rows] for rows that differ from each other: the gradient is one copy instead of a sorted sum."""
    taken: Tensor = _TakeRows.apply(hidden_td, rows_s)
    return taken


class _TakeRows(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden_td: Tensor, rows_s: Tensor) -> Tensor:
        ctx.save_for_backward(rows_s)
        ctx.tokens = hidden_td.shape[0]
        return hidden_td.index_select(0, rows_s)

    @staticmethod
    def backward(ctx: Any, grad_sd: Tensor) -> tuple[Tensor, None]:
        (rows_s,) = ctx.saved_tensors
        return grad_sd.new_zeros(ctx.tokens, grad_sd.shape[1]).index_copy_(0, rows_s, grad_sd), None
