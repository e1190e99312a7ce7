"""AdamW on CUDA: one launch for all tensors of one combination of dtypes. See `adamw.py` for what is computed.

The kernel finds its tensors through a table of addresses. The table is sent again only when an address has
changed; which program works on which part of which tensor depends on the sizes alone and is kept.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["adamw_"]

_BLOCK = 1024
_PART = 8192
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _at(table_ptr, index, dtype: tl.constexpr, aligned: tl.constexpr):
    pointer = tl.load(table_ptr + index).to(tl.pointer_type(dtype))
    return tl.multiple_of(pointer, 16) if aligned else pointer


@triton.jit
def _step(
    table_ptr, parts_ptr, grad_scale_ptr, tensors, decay, step_size, rate1, beta2, rate2, correction2, eps, grad_scale,
    scale_on_device: tl.constexpr, separate: tl.constexpr, aligned: tl.constexpr,
    master_t: tl.constexpr, param_t: tl.constexpr, grad_t: tl.constexpr, state_t: tl.constexpr,
    part: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    index = tl.load(parts_ptr + 3 * tl.program_id(0))
    first = tl.load(parts_ptr + 3 * tl.program_id(0) + 1) * part
    count = tl.load(parts_ptr + 3 * tl.program_id(0) + 2)
    if scale_on_device:
        grad_scale = tl.load(grad_scale_ptr).to(tl.float32)
        count = tl.where(grad_scale == grad_scale, count, 0)  # NaN: leave everything as it is
    if aligned:
        count = tl.multiple_of(count, 16)
    master_ptr = _at(table_ptr, index, master_t, aligned)
    param_ptr = _at(table_ptr, index + tensors, param_t, aligned)
    grad_ptr = _at(table_ptr, index + 2 * tensors, grad_t, aligned)
    mean_ptr = _at(table_ptr, index + 3 * tensors, state_t, aligned)
    square_ptr = _at(table_ptr, index + 4 * tensors, state_t, aligned)
    for start in range(0, part, block):
        at = first + start + tl.arange(0, block)
        mask = at < count
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32) * grad_scale
        master = tl.load(master_ptr + at, mask=mask, other=0.0).to(tl.float32) * decay
        mean = tl.load(mean_ptr + at, mask=mask, other=0.0).to(tl.float32)
        square = tl.load(square_ptr + at, mask=mask, other=0.0).to(tl.float32)
        mean = mean + rate1 * (grad - mean)
        square = beta2 * square + rate2 * grad * grad
        master = master - step_size * mean / (tl.sqrt(square) / correction2 + eps)
        tl.store(master_ptr + at, master.to(master_t), mask=mask)
        tl.store(mean_ptr + at, mean.to(state_t), mask=mask)
        tl.store(square_ptr + at, square.to(state_t), mask=mask)
        if separate:
            tl.store(param_ptr + at, master.to(param_t), mask=mask)


@lru_cache(maxsize=64)
def _parts(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """(P, 3) int64: tensor, part of it, its size; one program each."""
    index = torch.arange(len(sizes)).repeat_interleave(torch.tensor([-(-size // _PART) for size in sizes]))
    each = [torch.arange(-(-size // _PART)) for size in sizes]
    return torch.stack([index, torch.cat(each), torch.tensor(sizes)[index]], dim=1).contiguous().to(device)


@lru_cache(maxsize=64)
def _table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    table = torch.tensor(addresses, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def adamw_(
    masters: Sequence[Tensor], params: Sequence[Tensor], grads: Sequence[Tensor], exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int,
    grad_scale: float | Tensor,
) -> None:  # fmt: skip
    """As `adamw.adamw_`. All tensors dense and on one device."""
    tensors = [entry for entry in zip(masters, params, grads, exp_avg, exp_avg_sq, strict=True) if entry[0].numel()]
    numbers = (
        1.0 - lr * weight_decay, lr / (1.0 - betas[0] ** step), 1.0 - betas[0], betas[1], 1.0 - betas[1],
        (1.0 - betas[1] ** step) ** 0.5, eps,
    )  # fmt: skip
    groups: dict[tuple[object, ...], list[tuple[Tensor, ...]]] = {}
    for entry in tensors:
        # What one launch must have in common. Sizes of a multiple of 16 move 16 bytes at a time.
        kind = (entry[0] is entry[1], entry[0].numel() % 16 == 0, *(tensor.dtype for tensor in entry))
        groups.setdefault(kind, []).append(entry)
    for (_, even, *_), entries in groups.items():
        _launch(entries, numbers, grad_scale, bool(even))


def _launch(
    entries: list[tuple[Tensor, ...]], numbers: tuple[float, ...], grad_scale: float | Tensor, even: bool
) -> None:
    device = entries[0][0].device
    assert all(tensor.is_contiguous() for entry in entries for tensor in entry), "adamw_ takes dense tensors"
    addresses = tuple(entry[field].data_ptr() for field in range(5) for entry in entries)
    parts = _parts(tuple(entry[0].numel() for entry in entries), device)
    table = _table(addresses, device)
    on_device = isinstance(grad_scale, Tensor)
    master, param, grad, mean, _ = entries[0]
    _step[(parts.shape[0],)](
        table, parts, grad_scale if on_device else table, len(entries), *numbers,
        1.0 if on_device else float(grad_scale),
        on_device, master is not param, even and all(address % 16 == 0 for address in addresses),
        *(_TYPES[tensor.dtype] for tensor in (master, param, grad, mean)), _PART, _BLOCK, num_warps=4,
    )  # fmt: skip
