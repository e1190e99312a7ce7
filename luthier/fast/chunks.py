"""A head's logits a chunk at a time: how many rows, the products, and the gradients that come with them.

Legend: S supervised targets, D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.fast.kernels.cross_entropy import cross_entropy_
from luthier.fast.products import grad_input, grad_weight, product, uses_onednn

__all__ = [
    "CACHED_BYTES", "IDENTITY", "Gradients", "LogitTransform", "Settings", "chunk_rows", "logits_room", "raw_logits",
    "sweep",
]  # fmt: skip

# Bytes of one chunk of logits. On a CPU a chunk should stay near the caches; on a GPU a chunk of 4k to 8k
# rows is needed for the products to run at their best rate, and more rows only take memory.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
_MAX_ROWS = {"cuda": 8192}
# Logits of a chunk on CUDA start every row at a multiple of this many elements, whatever the vocabulary:
# products and kernels move 16 bytes at a time only from such addresses.
_ROW_ALIGNMENT = 64
# fp32 bytes of the rows that the passes over the vocabulary work on at once on a CPU: within its caches.
CACHED_BYTES = 2 << 20


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
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def chunk_rows(n_rows: int, vocab_size: int, device_type: str, *, element_bytes: int = 4) -> int:
    """Rows of logits to hold at once: near-equal chunks within the byte budget of the device, at least one row."""
    fitting = max(1, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["cuda"]) // (element_bytes * vocab_size))
    fitting = min(fitting, _MAX_ROWS.get(device_type, fitting))
    count = max(1, -(-n_rows // fitting))
    return max(1, -(-n_rows // count))


@dataclass(frozen=True, slots=True)
class Settings:
    """How `sweep` goes through the rows."""

    label_smoothing: float
    transform: LogitTransform
    rows: int
    """Of a chunk."""
    with_gradient: bool


def sweep(
    hidden_sd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, ids_s: Tensor, weights_s: Tensor, settings: Settings,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Gradients]:  # fmt: skip
    """Loss sum, correct count and the gradients `wanted` of (hidden, weight, bias), chunk by chunk."""
    loss = torch.zeros((), dtype=torch.float32, device=hidden_sd.device)
    correct = torch.zeros((), dtype=torch.int64, device=hidden_sd.device)
    d_hidden = torch.empty_like(hidden_sd, memory_format=torch.contiguous_format) if wanted[0] else None
    d_weight: Tensor | None = None
    d_bias = torch.zeros_like(bias_v, dtype=torch.float32) if wanted[2] and bias_v is not None else None
    room = logits_room(hidden_sd, weight_vd, settings.rows)
    for start in range(0, hidden_sd.shape[0], settings.rows):
        part = slice(start, start + settings.rows)
        hidden = hidden_sd[part]
        raw = raw_logits(hidden, weight_vd, bias_v, room)
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
    return loss, correct, (d_hidden, d_weight, d_bias)


def logits_room(hidden_sd: Tensor, weight_vd: Tensor, rows: int) -> Tensor | None:
    """Memory that every chunk of logits uses in turn on CUDA, rows aligned."""
    if not hidden_sd.is_cuda:
        return None
    stride = -(-weight_vd.shape[0] // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
    return hidden_sd.new_empty((min(rows, hidden_sd.shape[0]), stride))


def raw_logits(hidden: Tensor, weight_vd: Tensor, bias_v: Tensor | None, room: Tensor | None) -> Tensor:
    """Output of the head for some rows, in `room` where there is one."""
    if room is None:
        return product(hidden, weight_vd, bias_v)
    raw = room[: hidden.shape[0], : weight_vd.shape[0]]
    if bias_v is None:
        return torch.mm(hidden, weight_vd.t(), out=raw)
    return torch.addmm(bias_v, hidden, weight_vd.t(), out=raw)


def _to_gradient_(
    raw: Tensor, ids: Tensor, weights: Tensor, settings: Settings, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Turn a chunk of head outputs into their gradient; returns the loss and the correct count.

    On a CPU the passes over the vocabulary run on a few rows at a time, which keeps them in the caches.
    """
    rows = CACHED_BYTES // (4 * raw.shape[1]) if raw.device.type == "cpu" else raw.shape[0]
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
