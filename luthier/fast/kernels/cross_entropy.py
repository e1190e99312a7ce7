"""Weighted cross entropy of a block of logits: loss, arg-max count and gradient, which replaces the logits.

For raw head outputs r of one row, target y, weight w, V entries and z = softcap tanh(scale r / softcap):

    loss     = w ((1 - e) (-log p_y) + e mean_v(-log p_v))        p = softmax(z)
    dloss/dr = w (p_v - (1 - e) [v = y] - e / V) (1 - (z / softcap)^2) scale

Legend: S rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.choice import math_dtype, uses_triton

__all__ = ["cross_entropy_", "cross_entropy_reference_", "target_losses"]


def cross_entropy_(
    raw_sv: Tensor,
    ids_s: Tensor,
    weights_s: Tensor,
    *,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
    with_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """(weighted sum of the losses, fp32 scalar; how many targets are the first arg max, int64 scalar).

    With `with_gradient` `raw_sv` is overwritten by its gradient, in its own dtype. ids int64 (S,) in [0, V),
    weights (S,).
    """
    if uses_triton(raw_sv):
        from luthier.fast.kernels import cross_entropy_triton

        return cross_entropy_triton.cross_entropy_(
            raw_sv, ids_s, weights_s, label_smoothing, scale, softcap, with_gradient
        )
    return cross_entropy_reference_(
        raw_sv, ids_s, weights_s, label_smoothing=label_smoothing, scale=scale, softcap=softcap,
        with_gradient=with_gradient,
    )  # fmt: skip


def target_losses(
    raw_sv: Tensor, ids_s: Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """(-log p of each target, fp32 or fp64 (S,); whether it is the first arg max, bool (S,)). Overwrites nothing."""
    if uses_triton(raw_sv):
        from luthier.fast.kernels import cross_entropy_triton

        return cross_entropy_triton.target_losses(raw_sv, ids_s, scale, softcap)
    logits = raw_sv.to(math_dtype(raw_sv))
    logits = logits if scale == 1.0 else logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    chosen = logits.gather(1, ids_s[:, None]).squeeze(1)
    return logits.logsumexp(dim=-1) - chosen, logits.argmax(dim=-1) == ids_s


def cross_entropy_reference_(
    raw_sv: Tensor,
    ids_s: Tensor,
    weights_s: Tensor,
    *,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
    with_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Definition of `cross_entropy_`. The caller picks how many rows it takes at once."""
    raw = raw_sv.to(math_dtype(raw_sv))
    logits = raw if scale == 1.0 else raw * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    correct = (logits.argmax(dim=-1) == ids_s).sum()
    log_probs = torch.log_softmax(logits, dim=-1)
    loss_s = (label_smoothing - 1.0) * log_probs.gather(1, ids_s[:, None]).squeeze(1)
    if label_smoothing:
        loss_s -= label_smoothing * log_probs.mean(dim=-1)
    weights = weights_s.to(logits.dtype)
    loss = (loss_s * weights).sum()
    if with_gradient:
        grad = log_probs.exp_().mul_(weights[:, None])
        if label_smoothing:
            grad.sub_((weights * (label_smoothing / raw_sv.shape[1]))[:, None])
        grad.scatter_add_(1, ids_s[:, None], (weights * (label_smoothing - 1.0))[:, None])
        if softcap is not None:
            grad.mul_(1.0 - (logits / softcap).square_())
        raw_sv.copy_(grad if scale == 1.0 else grad.mul_(scale))
    return loss.float(), correct
