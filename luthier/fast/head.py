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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.fast.kernels.cross_entropy import cross_entropy_
from luthier.fast.kernels.scale import scaled_
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

# Bytes of one chunk of logits. On a CPU a chunk should stay near the caches; on a GPU a chunk of 4k to 8k
# rows is needed for the products to run at their best rate, and more rows only take memory.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
_MAX_ROWS = {"cuda": 8192}
# Logits of a chunk on CUDA start every row at a multiple of this many elements, whatever the vocabulary:
# products and kernels move 16 bytes at a time only from such addresses.
_ROW_ALIGNMENT = 64
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


IDENTITY = LogitTransform()


def chunk_rows(n_rows: int, vocab_size: int, device_type: str, *, element_bytes: int = 4) -> int:
    """Rows of logits to hold at once: near-equal chunks within the byte budget of the device, at least one row."""
    fitting = max(1, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["cuda"]) // (element_bytes * vocab_size))
    fitting = min(fitting, _MAX_ROWS.get(device_type, fitting))
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
        (loss, correct): fp32 scalar with gradient for hidden, weight and bias; int64 scalar. The gradient
        can be asked for once: a second backward pass raises RuntimeError.
    """
    # On CUDA the logits stay in the compute dtype; elsewhere some of them also exist in fp32.
    element_bytes = hidden_sd.element_size() if hidden_sd.is_cuda else 4
    rows = rows_per_chunk or chunk_rows(
        hidden_sd.shape[0], weight_vd.shape[0], hidden_sd.device.type, element_bytes=element_bytes
    )
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
        d_hidden = torch.empty_like(hidden_sd, memory_format=torch.contiguous_format) if wanted[0] else None
        d_weight: Tensor | None = None
        d_bias = torch.zeros_like(bias_v, dtype=torch.float32) if wanted[2] and bias_v is not None else None
        room = _logits_room(hidden_sd, weight_vd, settings.rows)
        for start in range(0, hidden_sd.shape[0], settings.rows):
            part = slice(start, start + settings.rows)
            hidden = hidden_sd[part]
            raw = _raw_logits(hidden, weight_vd, bias_v, room)
            part_loss, part_correct = _to_gradient_(raw, ids_s[part], weights_s[part], settings, any(wanted))
            loss += part_loss
            correct += part_correct
            if d_hidden is not None:
                _grad_input(raw, weight_vd, d_hidden[part])
            if wanted[1]:
                d_weight = _add_weight_gradient(d_weight, raw, hidden, only=hidden.shape[0] == hidden_sd.shape[0])
            if d_bias is not None:
                d_bias += raw.sum(dim=0, dtype=torch.float32)
        if wanted[1] and d_weight is None:
            d_weight = torch.zeros_like(weight_vd)
        # Not `save_for_backward`: the backward pass scales these in place and gives them away.
        ctx.gradients = (d_hidden, d_weight, d_bias)
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


def _logits_room(hidden_sd: Tensor, weight_vd: Tensor, rows: int) -> Tensor | None:
    """Memory that every chunk of logits uses in turn on CUDA, rows aligned."""
    if not hidden_sd.is_cuda:
        return None
    stride = -(-weight_vd.shape[0] // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
    return hidden_sd.new_empty((min(rows, hidden_sd.shape[0]), stride))


def _raw_logits(hidden: Tensor, weight_vd: Tensor, bias_v: Tensor | None, room: Tensor | None) -> Tensor:
    if room is None:
        return product(hidden, weight_vd, bias_v)
    raw = room[: hidden.shape[0], : weight_vd.shape[0]]
    if bias_v is None:
        return torch.mm(hidden, weight_vd.t(), out=raw)
    return torch.addmm(bias_v, hidden, weight_vd.t(), out=raw)


def _to_gradient_(
    raw: Tensor, ids: Tensor, weights: Tensor, settings: _Settings, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Turn a chunk of head outputs into their gradient; returns the loss and the correct count.

    On a CPU the passes over the vocabulary run on a few rows at a time, which keeps them in the caches.
    """
    rows = _CACHED_BYTES // (4 * raw.shape[1]) if raw.device.type == "cpu" else raw.shape[0]
    loss = torch.zeros((), dtype=torch.float32, device=raw.device)
    correct = torch.zeros((), dtype=torch.int64, device=raw.device)
    for block, block_ids, block_weights in zip(*(t.split(max(1, rows)) for t in (raw, ids, weights)), strict=True):
        block_loss, block_correct = cross_entropy_(
            block, block_ids, block_weights, label_smoothing=settings.label_smoothing,
            scale=settings.transform.scale, softcap=settings.transform.softcap, with_gradient=with_gradient,
        )  # fmt: skip
        loss += block_loss
        correct += block_correct
    return loss, correct


def _grad_input(grad_sv: Tensor, weight_vd: Tensor, out_sd: Tensor) -> None:
    if grad_sv.is_cuda:
        torch.mm(grad_sv, weight_vd, out=out_sd)
    else:
        out_sd.copy_(grad_input(grad_sv, weight_vd))


def _add_weight_gradient(total: Tensor | None, grad_sv: Tensor, hidden_sd: Tensor, *, only: bool) -> Tensor:
    """total + grad^T hidden, summed in fp32; in the dtype of the products if this is the `only` chunk on CUDA."""
    grad_vs = grad_sv.t()
    if grad_sv.is_cuda and only:
        return grad_vs @ hidden_sd
    if grad_sv.is_cuda and grad_sv.dtype in (torch.bfloat16, torch.float16):
        # cuBLAS multiplies 16-bit inputs into an fp32 result, and adds to it, within the product.
        if total is None:
            return torch.ops.aten.mm.dtype(grad_vs, hidden_sd, torch.float32)
        return torch.ops.aten.addmm.dtype_out(total, grad_vs, hidden_sd, torch.float32, out=total)
    if total is None:
        total = grad_sv.new_zeros((grad_sv.shape[1], hidden_sd.shape[1]), dtype=torch.float32)
    if grad_sv.dtype == torch.float32 and not uses_onednn(grad_sv):
        return total.addmm_(grad_vs, hidden_sd)
    return total.add_(grad_weight(grad_sv, hidden_sd))


def plain_linear(head: nn.Module) -> nn.Linear | None:
    """The one matrix that `head` is at this moment, or None if it is more than that.

    A head trained in full under PEFT (`modules_to_save`) is its active copy.
    """
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper) and not head.disable_adapters and len(head.active_adapters) == 1:
        return plain_linear(head.modules_to_save[head.active_adapters[0]])
    hooked = head._forward_hooks or head._forward_pre_hooks
    return head if type(head) in (nn.Linear, FastLinear) and not hooked else None
