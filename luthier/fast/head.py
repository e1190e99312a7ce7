"""Head and loss at supervised positions only, a chunk of logits at a time.

For logits z = f(h W^T + b) of one target y with weight w, f the optional scale and soft-cap:

    p      = softmax(z)                        (fp32, log-sum-exp shifted by the maximum)
    loss   = w ((1 - e) (-log p_y) + e mean_v(-log p_v))
    dloss/dz_v = w (p_v - (1 - e) [v = y] - e / V)

The gradient of z is known as soon as z is, so `LinearCrossEntropy` makes the gradients of h, W and b
in its forward pass, chunk by chunk: three matrix products, no logits kept, none computed twice. The
backward pass only scales them, in place, and therefore runs once. Products run in the compute dtype,
everything over the vocabulary in fp32, and the head's gradient is summed over chunks in fp32: on CUDA
by the product itself, and not at all where one chunk holds all rows.

Legend: S supervised targets, D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.fast.chunks import IDENTITY, LogitTransform, Settings, chunk_rows, sweep
from luthier.fast.hooks import has_hooks
from luthier.fast.kernels.scale import scaled_
from luthier.fast.linear import FastLinear

__all__ = [
    "LogitTransform",
    "chunk_rows",
    "linear_cross_entropy",
    "logits_cross_entropy",
    "module_cross_entropy",
    "plain_linear",
]


def linear_cross_entropy(
    hidden_sd: Tensor,
    weight_vd: Tensor,
    *,
    bias_v: Tensor | None = None,
    target_ids_s: Tensor,
    target_weights_s: Tensor,
    label_smoothing: float = 0.0,
    transform: LogitTransform = IDENTITY,
    rows_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of weighted losses for a head that is one matrix, and how many targets are the arg max.

    Same contract as `reference.linear_cross_entropy`.

    Returns:
        (loss, correct): fp32 scalar with gradient for hidden, weight and bias; int64 scalar. The gradient
        can be asked for once: a second backward pass raises RuntimeError.
    """
    # On CUDA the logits stay in the compute dtype; elsewhere some of them also exist in fp32.
    element_bytes = hidden_sd.element_size() if hidden_sd.is_cuda else 4
    rows = rows_per_chunk or chunk_rows(
        hidden_sd.shape[0], weight_vd.shape[0], hidden_sd.device.type, element_bytes=element_bytes
    )
    settings = Settings(label_smoothing, transform, rows, torch.is_grad_enabled())
    loss, correct = _LinearCrossEntropy.apply(hidden_sd, weight_vd, bias_v, target_ids_s, target_weights_s, settings)
    return loss, correct


def module_cross_entropy(
    hidden_sd: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    vocab_size: int,
    target_ids_s: Tensor,
    target_weights_s: Tensor,
    label_smoothing: float = 0.0,
    transform: LogitTransform = IDENTITY,
    rows_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for any head module (with adapters, quantised): its chunks are recomputed in the backward pass."""
    rows = rows_per_chunk or chunk_rows(hidden_sd.shape[0], vocab_size, hidden_sd.device.type)
    settings = Settings(label_smoothing, transform, rows, torch.is_grad_enabled())

    def one_chunk(hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return logits_cross_entropy(head(hidden), ids, weights, label_smoothing=label_smoothing, transform=transform)

    loss = hidden_sd.new_zeros((), dtype=torch.float32)
    correct = torch.zeros((), dtype=torch.int64, device=hidden_sd.device)
    for start in range(0, hidden_sd.shape[0], rows):
        part = slice(start, start + rows)
        inputs = (hidden_sd[part], target_ids_s[part], target_weights_s[part])
        if settings.with_gradient:
            part_loss, part_correct = checkpoint(one_chunk, *inputs, use_reentrant=False)
        else:
            part_loss, part_correct = one_chunk(*inputs)
        loss, correct = loss + part_loss, correct + part_correct
    return loss, correct


def logits_cross_entropy(
    raw_sv: Tensor,
    target_ids_s: Tensor,
    target_weights_s: Tensor,
    *,
    label_smoothing: float,
    transform: LogitTransform = IDENTITY,
) -> tuple[Tensor, Tensor]:
    """The same for logits that are already there; differentiated by autograd."""
    logits_sv = transform.apply(raw_sv.float())
    lse_s = torch.logsumexp(logits_sv, dim=-1)
    chosen_s = logits_sv.gather(1, target_ids_s[:, None]).squeeze(1)
    loss_s = lse_s - chosen_s
    if label_smoothing:
        loss_s = (1.0 - label_smoothing) * loss_s + label_smoothing * (lse_s - logits_sv.mean(dim=-1))
    correct = (logits_sv.detach().argmax(dim=-1) == target_ids_s).sum()
    return (loss_s * target_weights_s).sum(), correct


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """See the head of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_sd: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        ids_s: Tensor,
        weights_s: Tensor,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        wanted = [settings.with_gradient and need for need in ctx.needs_input_grad[:3]]
        loss, correct, gradients = sweep(hidden_sd, weight_vd, bias_v, ids_s, weights_s, settings, wanted)
        # Not `save_for_backward`: the backward pass scales these in place and gives them away.
        ctx.gradients = gradients
        ctx.dtypes = (hidden_sd.dtype, weight_vd.dtype, None if bias_v is None else bias_v.dtype)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the loss of the head was differentiated twice: its gradients are made in the forward pass and given "
                "away by the first backward pass; compute the loss again, or sum the losses before one backward pass"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if gradient is None else scaled_(gradient, d_loss, dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def plain_linear(head: nn.Module) -> nn.Linear | None:
    """The one matrix that `head` is at this moment, or None if it is more than that.

    A head trained in full under PEFT (`modules_to_save`) is its active copy.
    """
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper) and not head.disable_adapters and len(head.active_adapters) == 1:
        return plain_linear(head.modules_to_save[head.active_adapters[0]])
    return head if type(head) in (nn.Linear, FastLinear) and not has_hooks(head) else None
