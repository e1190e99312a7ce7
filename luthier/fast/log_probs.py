"""Log-probability of each target and of each answer, differentiable, a chunk of logits at a time.

The forward pass needs logits once and keeps none of them. In the backward pass the gradient d of L with respect to
log p_s is known, and since log p_s = -loss_s, the gradients of hidden states and head are those of the weighted
cross-entropy with weights -d (`chunks.py`): logits again, then two products. So an objective may be any function of
log-probabilities, and its gradient is exact.

Legend: S targets, A answers, D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.data.batch import Answers
from luthier.fast.chunks import (
    CACHED_BYTES,
    IDENTITY,
    LogitTransform,
    Settings,
    chunk_rows,
    logits_room,
    raw_logits,
    sweep,
)
from luthier.fast.kernels.choice import math_dtype
from luthier.fast.kernels.cross_entropy import target_losses

__all__ = ["answer_sums", "linear_log_probs", "logits_log_probs", "module_log_probs"]


def linear_log_probs(
    hidden_sd: Tensor,
    weight_vd: Tensor,
    *,
    bias_v: Tensor | None = None,
    target_ids_s: Tensor,
    transform: LogitTransform = IDENTITY,
    rows_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """For a head that is one matrix: (log p of each target, fp32 (S,), with gradient for hidden, weight and bias;
    whether the target is the arg max, bool (S,))."""
    element_bytes = hidden_sd.element_size() if hidden_sd.is_cuda else 4
    rows = rows_per_chunk or chunk_rows(
        hidden_sd.shape[0], weight_vd.shape[0], hidden_sd.device.type, element_bytes=element_bytes
    )
    settings = Settings(0.0, transform, rows, torch.is_grad_enabled())
    log_probs, correct = _LinearLogProbs.apply(hidden_sd, weight_vd, bias_v, target_ids_s, settings)
    return log_probs, correct


def module_log_probs(
    hidden_sd: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    vocab_size: int,
    target_ids_s: Tensor,
    transform: LogitTransform = IDENTITY,
    rows_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for any head module (with adapters, quantised): its chunks are recomputed in the backward pass."""
    rows = rows_per_chunk or chunk_rows(hidden_sd.shape[0], vocab_size, hidden_sd.device.type)

    def one_chunk(hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return logits_log_probs(head(hidden), ids, transform=transform)

    parts = []
    for start in range(0, hidden_sd.shape[0], rows):
        inputs = (hidden_sd[start : start + rows], target_ids_s[start : start + rows])
        grad = torch.is_grad_enabled()
        parts.append(checkpoint(one_chunk, *inputs, use_reentrant=False) if grad else one_chunk(*inputs))
    if not parts:
        return hidden_sd.sum(dim=-1).float(), target_ids_s == -1
    return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])


def logits_log_probs(
    raw_sv: Tensor, target_ids_s: Tensor, *, transform: LogitTransform = IDENTITY
) -> tuple[Tensor, Tensor]:
    """The same for logits that are already there; differentiated by autograd."""
    logits_sv = transform.apply(raw_sv.float())
    chosen_s = logits_sv.gather(1, target_ids_s[:, None]).squeeze(1)
    return chosen_s - torch.logsumexp(logits_sv, dim=-1), logits_sv.detach().argmax(dim=-1) == target_ids_s


def answer_sums(log_probs_s: Tensor, weights_s: Tensor, answers: Answers, *, longest: int) -> Tensor:
    """(A,): sum of weight x log p over the targets of each answer, differentiable.

    Summed in fp64 (a thousand terms would cost fp32 its last three digits), in an order that does not depend on the
    other answers of the batch. `longest` is at least the number of targets of any answer.
    """
    counts = answers.lengths.long()
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(log_probs_s), device=log_probs_s.device) - starts[answers.of_target]
    wide = torch.float32 if log_probs_s.device.type == "mps" else torch.float64
    terms = log_probs_s.to(wide) * weights_s.to(wide)
    table = terms.new_zeros(len(counts) * longest).scatter(0, answers.of_target * longest + place, terms)
    return table.view(-1, longest).sum(dim=1).to(log_probs_s.dtype)


class _LinearLogProbs(torch.autograd.Function):  # type: ignore[misc]
    """See the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, hidden_sd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, ids_s: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        log_probs = torch.empty(hidden_sd.shape[0], dtype=math_dtype(hidden_sd), device=hidden_sd.device)
        correct = torch.empty(hidden_sd.shape[0], dtype=torch.bool, device=hidden_sd.device)
        room = logits_room(hidden_sd, weight_vd, settings.rows)
        # On a CPU the passes over the vocabulary run on a few rows at a time, which keeps them in the caches.
        few = max(1, CACHED_BYTES // (4 * weight_vd.shape[0])) if hidden_sd.device.type == "cpu" else settings.rows
        scale, softcap = settings.transform.scale, settings.transform.softcap
        for start in range(0, hidden_sd.shape[0], settings.rows):
            raw = raw_logits(hidden_sd[start : start + settings.rows], weight_vd, bias_v, room)
            for first in range(0, raw.shape[0], few):
                rows = slice(start + first, start + min(first + few, raw.shape[0]))
                losses, right = target_losses(raw[first : first + few], ids_s[rows], scale=scale, softcap=softcap)
                log_probs[rows], correct[rows] = -losses, right
        ctx.save_for_backward(hidden_sd, weight_vd, bias_v, ids_s)
        ctx.settings = settings
        ctx.mark_non_differentiable(correct)
        return log_probs, correct

    @staticmethod
    def backward(ctx: Any, d_log_probs: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_sd, weight_vd, bias_v, ids_s = ctx.saved_tensors
        _, _, found = sweep(hidden_sd, weight_vd, bias_v, ids_s, -d_log_probs, ctx.settings, ctx.needs_input_grad[:3])
        given = (hidden_sd, weight_vd, bias_v)
        gradients = [
            None if gradient is None or tensor is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(found, given, strict=True)
        ]
        return (*gradients, None, None)
