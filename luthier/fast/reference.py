"""Plain definitions of what the fast paths compute; tests compare against these, training never calls them.

Legend: S supervised targets, D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["attention_one_document", "linear_cross_entropy"]


def linear_cross_entropy(
    hidden_sd: Tensor,
    weight_vd: Tensor,
    *,
    bias_v: Tensor | None = None,
    target_ids_s: Tensor,
    target_weights_s: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of weight x ((1 - e) NLL + e mean(-log p)) over the targets, and how many targets are the arg max.

    Returns:
        (loss, correct): fp32 scalar with gradient; int64 scalar.
    """
    logits_sv = linear(hidden_sd, weight_vd, bias_v).float() * logit_scale
    if softcap is not None:
        logits_sv = softcap * torch.tanh(logits_sv / softcap)
    log_probs_sv = torch.log_softmax(logits_sv, dim=-1)
    nll_s = -log_probs_sv.gather(1, target_ids_s[:, None]).squeeze(1)
    smooth_s = -log_probs_sv.mean(dim=-1)
    loss_s = (1.0 - label_smoothing) * nll_s + label_smoothing * smooth_s
    correct = (logits_sv.argmax(dim=-1) == target_ids_s).sum()
    return (loss_s * target_weights_s).sum(), correct


def attention_one_document(
    query_htk: Tensor, key_gtk: Tensor, value_gtk: Tensor, *, scale: float, window: int | None
) -> Tensor:
    """Causal softmax attention of one document, written out. `window` counts visible keys, the query's own included.

    Shapes: query (H, T, K), key and value (G, T, K) with H a multiple of G. Returns (H, T, K).
    """
    groups = query_htk.shape[0] // key_gtk.shape[0]
    key_htk = key_gtk.repeat_interleave(groups, dim=0)
    value_htk = value_gtk.repeat_interleave(groups, dim=0)
    scores_htt = query_htk @ key_htk.transpose(1, 2) * scale
    tokens = query_htk.shape[1]
    row = torch.arange(tokens, device=query_htk.device)
    visible = row[:, None] >= row[None, :]
    if window is not None:
        visible &= row[:, None] - row[None, :] < window
    scores_htt = scores_htt.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores_htt.float(), dim=-1).to(value_htk.dtype) @ value_htk
