"""Head and loss at supervised positions only, a chunk of logits at a time.

For logits z = f(h W^T + b) of one target y with weight w, f the optional scale and soft-cap:

    p      = softmax(z)                        (fp32, log-sum-exp shifted by the maximum)
    loss   = w ((1 - e) (-log p_y) + e mean_v(-log p_v))
    dloss/dz_v = w (p_v - (1 - e) [v = y] - e / V)

The gradient of z is known as soon as z is, so `LinearCrossEntropy` makes the gradients of h, W and b
in its forward pass, chunk by chunk: three matrix products, no logits kept, none computed twice. The
backward pass only scales them. Products run in the compute dtype, everything over the vocabulary in
fp32, and the head's gradient is summed over chunks in fp32.

Legend: S supervised targets, D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.fast.linear import FastLinear
from luthier.fast.products import grad_input, grad_weight, product, uses_onednn

__all__ = [
    "LogitTransform",
    "chunk_rows",
    "linear_cross_entropy",
    "logits_cross_entropy",
    "module_cross_entropy",
    "plain_linear",
]

# fp32 bytes of one chunk of logits. On a CPU a chunk should stay near the caches; on a GPU
# a chunk of 4k to 8k rows is needed for the products to run at their best rate.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
# fp32 bytes of the rows that the passes over the vocabulary work on at once on a CPU: within its caches.
_CACHED_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to the output of its head: z = softcap tanh(scale x / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, raw: Tensor) -> Tensor:
        """The logits for `raw`, the output of the head."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    def backward_(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient of `logits` into the gradient of the head's output, in place."""
        if self.softcap is not None:
            grad.mul_(1.0 - (logits / self.softcap).square_())
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


IDENTITY = LogitTransform()


def chunk_rows(n_rows: int, vocab_size: int, device_type: str) -> int:
    """Rows of logits to hold at once: near-equal chunks within the byte budget of the device, at least one row."""
    fitting = max(1, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["cuda"]) // (4 * vocab_size))
    count = max(1, -(-n_rows // fitting))
    return max(1, -(-n_rows // count))


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
        (loss, correct): fp32 scalar with gradient for hidden, weight and bias; int64 scalar.
    """
    rows = rows_per_chunk or chunk_rows(hidden_sd.shape[0], weight_vd.shape[0], hidden_sd.device.type)
    settings = _Settings(label_smoothing, transform, rows, torch.is_grad_enabled())
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
    settings = _Settings(label_smoothing, transform, rows, torch.is_grad_enabled())

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


@dataclass(frozen=True, slots=True)
class _Settings:
    label_smoothing: float
    transform: LogitTransform
    rows: int
    with_gradient: bool


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
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        wanted = [settings.with_gradient and need for need in ctx.needs_input_grad[:3]]
        loss = torch.zeros((), dtype=torch.float32, device=hidden_sd.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_sd.device)
        d_hidden = torch.empty_like(hidden_sd) if wanted[0] else None
        d_weight = torch.zeros_like(weight_vd, dtype=torch.float32) if wanted[1] else None
        d_bias = torch.zeros_like(bias_v, dtype=torch.float32) if wanted[2] and bias_v is not None else None
        for start in range(0, hidden_sd.shape[0], settings.rows):
            part = slice(start, start + settings.rows)
            hidden = hidden_sd[part]
            raw = product(hidden, weight_vd, bias_v)
            grad, part_loss, part_correct = _chunk(raw, ids_s[part], weights_s[part], settings, any(wanted))
            loss += part_loss
            correct += part_correct
            if d_hidden is not None:
                d_hidden[part] = grad_input(grad, weight_vd)
            if d_weight is not None:
                _accumulate(d_weight, grad, hidden)
            if d_bias is not None:
                d_bias += grad.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (weight_vd.dtype, None if bias_v is None else bias_v.dtype)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if d_hidden is None else (d_hidden * d_loss).to(d_hidden.dtype),
            None if d_weight is None else (d_weight * d_loss).to(weight_dtype),
            None if d_bias is None else (d_bias * d_loss).to(bias_dtype),
            None,
            None,
            None,
        )


def _chunk(
    raw: Tensor, ids: Tensor, weights: Tensor, settings: _Settings, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn a chunk of head outputs into their gradient (in place for fp32); returns it, the loss and the correct count.

    The passes over the vocabulary run on a few rows at a time where that keeps them in the caches.
    """
    rows = _CACHED_BYTES // (4 * raw.shape[1]) if raw.device.type == "cpu" else raw.shape[0]
    loss = torch.zeros((), dtype=torch.float32, device=raw.device)
    correct = torch.zeros((), dtype=torch.int64, device=raw.device)
    for block, block_ids, block_weights in zip(*(t.split(max(1, rows)) for t in (raw, ids, weights)), strict=True):
        block_loss, block_correct = _block(block, block_ids, block_weights, settings, with_gradient)
        loss += block_loss
        correct += block_correct
    return raw, loss, correct


def _block(
    raw: Tensor, ids: Tensor, weights: Tensor, settings: _Settings, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Loss and correct count of some rows; writes the gradient over `raw`."""
    smoothing, transform = settings.label_smoothing, settings.transform
    logits = transform.apply(raw.float())
    correct = (logits.argmax(dim=-1) == ids).sum()
    log_probs = torch.log_softmax(logits, dim=-1)
    loss = (smoothing - 1.0) * log_probs.gather(1, ids[:, None]).squeeze(1)
    if smoothing:
        loss -= smoothing * log_probs.mean(dim=-1)
    loss = (loss * weights).sum()
    if with_gradient:
        grad = log_probs.exp_().mul_(weights[:, None])
        if smoothing:
            grad.sub_((weights * (smoothing / raw.shape[1]))[:, None])
        grad.scatter_add_(1, ids[:, None], (weights * (smoothing - 1.0))[:, None])
        raw.copy_(transform.backward_(grad, logits))
    return loss, correct


def _accumulate(total_fp32: Tensor, grad_sv: Tensor, hidden_sd: Tensor) -> None:
    """total += grad^T hidden, with the sum over chunks in fp32."""
    if grad_sv.dtype == torch.float32 and not uses_onednn(grad_sv):
        total_fp32.addmm_(grad_sv.t(), hidden_sd)
    else:
        total_fp32 += grad_weight(grad_sv, hidden_sd)


def plain_linear(head: nn.Module) -> nn.Linear | None:
    """The one matrix that `head` is at this moment, or None if it is more than that.

    A head trained in full under PEFT (`modules_to_save`) is its active copy.
    """
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper) and not head.disable_adapters and len(head.active_adapters) == 1:
        return plain_linear(head.modules_to_save[head.active_adapters[0]])
    hooked = head._forward_hooks or head._forward_pre_hooks
    return head if type(head) in (nn.Linear, FastLinear) and not hooked else None
