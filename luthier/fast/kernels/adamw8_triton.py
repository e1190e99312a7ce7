"""8-bit AdamW on CUDA: one launch for all tensors of one combination of dtypes. See `adamw8.py` for what is computed.

A warp holds a block of 256 values, 8 a lane, so a block's largest magnitude is five shuffles. 16 bytes a weight pass
through memory with bf16 gradients and parameters, all in pieces of 8 to 32 bytes a lane. Roots of roots instead of
tables: no gather, no search. Tensors are found as `adamw_triton.py` finds them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.fast.kernels.adamw_triton import _PART, _TYPES, _at, _parts, _table
from luthier.fast.kernels.maps8 import BLOCK, SMALLEST

__all__ = ["adamw8_"]

_ROWS, _WARPS = 4, 4
_FIELDS = 7
# Added to a number below 2^22 it leaves the number's nearest integer in the low bits, ties to even.
_ROUNDS = tl.constexpr(12582912.0)
_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit
def _store_codes(state_ptr, absmax_ptr, at, row, mask, row_mask, x, signed: tl.constexpr):
    absmax = tl.max(tl.abs(x), axis=1)
    absmax = tl.where(absmax >= _SMALLEST, absmax, 0.0)
    inverse = tl.where(absmax > 0.0, 1.0 / absmax, 0.0)
    y = x * inverse[:, None]
    if signed:
        root = tl.sqrt(tl.sqrt(tl.abs(y))) * 127.0
        code = (tl.where(y < 0.0, -root, root) + (_ROUNDS + 128.0)).to(tl.int32, bitcast=True) & 0xFF
    else:
        root = tl.sqrt(tl.sqrt(tl.sqrt(y))) * 255.0
        code = (root + _ROUNDS).to(tl.int32, bitcast=True) & 0xFF
        code = tl.maximum(code, (y > 0.0).to(tl.int32))
    tl.store(state_ptr + at, code.to(tl.uint8), mask=mask)
    tl.store(absmax_ptr + row, absmax, mask=row_mask)


@triton.jit
def _where(at, columns, stride, windowed: tl.constexpr):
    """Offset of element `at` of a matrix in its window."""
    if not windowed:
        return at
    row = at.to(tl.int32) // columns
    return row.to(tl.int64) * stride + (at.to(tl.int32) - row * columns)


@triton.jit
def _step8(
    table_ptr, parts_ptr, grad_scale_ptr, tensors, decay, step_size, rate1, beta2, rate2, root_rate, eps, grad_scale,
    scale_on_device: tl.constexpr, separate: tl.constexpr, windowed: tl.constexpr, aligned: tl.constexpr,
    param_t: tl.constexpr, grad_t: tl.constexpr, part: tl.constexpr, rows: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    index = tl.load(parts_ptr + 3 * tl.program_id(0))
    first = tl.load(parts_ptr + 3 * tl.program_id(0) + 1) * part
    count = tl.load(parts_ptr + 3 * tl.program_id(0) + 2)
    if scale_on_device:
        grad_scale = tl.load(grad_scale_ptr).to(tl.float32)
        count = tl.where(grad_scale == grad_scale, count, 0)  # NaN: leave everything as it is
    if aligned:
        count = tl.multiple_of(count, 16)
    master_ptr = _at(table_ptr, index, tl.float32, aligned)
    param_ptr = _at(table_ptr, index + tensors, param_t, aligned)
    grad_ptr = _at(table_ptr, index + 2 * tensors, grad_t, aligned)
    state1_ptr = _at(table_ptr, index + 3 * tensors, tl.uint8, aligned)
    absmax1_ptr = _at(table_ptr, index + 4 * tensors, tl.float32, aligned)
    state2_ptr = _at(table_ptr, index + 5 * tensors, tl.uint8, aligned)
    absmax2_ptr = _at(table_ptr, index + 6 * tensors, tl.float32, aligned)
    columns, param_stride, grad_stride = 0, 0, 0
    if windowed:
        columns = tl.load(table_ptr + index + 7 * tensors).to(tl.int32)
        param_stride = tl.load(table_ptr + index + 8 * tensors)
        grad_stride = tl.load(table_ptr + index + 9 * tensors)
    for start in range(0, part, rows * width):
        row = (first + start) // width + tl.arange(0, rows)
        at = (first + start) + (tl.arange(0, rows)[:, None] * width + tl.arange(0, width)[None, :])
        mask = at < count
        row_mask = row * width < count
        grad = tl.load(grad_ptr + _where(at, columns, grad_stride, windowed), mask=mask, other=0.0)
        grad = grad.to(tl.float32) * grad_scale
        master = tl.load(master_ptr + at, mask=mask, other=0.0) * decay
        r1 = (tl.load(state1_ptr + at, mask=mask, other=128).to(tl.float32) - 128.0) * (1.0 / 127.0)
        r2 = tl.load(state2_ptr + at, mask=mask, other=0).to(tl.float32) * (1.0 / 255.0)
        mean = (r1 * r1) * (r1 * tl.abs(r1)) * tl.load(absmax1_ptr + row, mask=row_mask, other=0.0)[:, None]
        r2 = r2 * r2
        r2 = r2 * r2
        square = r2 * r2 * tl.load(absmax2_ptr + row, mask=row_mask, other=0.0)[:, None]
        mean = mean + rate1 * (grad - mean)
        square = beta2 * square + rate2 * grad * grad
        master = master - step_size * mean / (tl.sqrt(square) * root_rate + eps)
        tl.store(master_ptr + at, master, mask=mask)
        if separate:
            tl.store(param_ptr + _where(at, columns, param_stride, windowed), master.to(param_t), mask=mask)
        _store_codes(state1_ptr, absmax1_ptr, at, row, mask, row_mask, mean, True)
        _store_codes(state2_ptr, absmax2_ptr, at, row, mask, row_mask, square, False)


def adamw8_(
    masters: Sequence[Tensor], params: Sequence[Tensor], grads: Sequence[Tensor], state1: Sequence[Tensor],
    absmax1: Sequence[Tensor], state2: Sequence[Tensor], absmax2: Sequence[Tensor], lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float, step: int, grad_scale: float | Tensor,
) -> None:  # fmt: skip
    """As `adamw8.adamw8_`. All tensors on one device."""
    lists = (masters, params, grads, state1, absmax1, state2, absmax2)
    numbers = (
        1.0 - lr * weight_decay, lr / (1.0 - betas[0] ** step), 1.0 - betas[0], betas[1], 1.0 - betas[1],
        (1.0 - betas[1] ** step) ** -0.5, eps,
    )  # fmt: skip
    groups: dict[tuple[bool, bool, bool, torch.dtype, torch.dtype], list[tuple[Tensor, ...]]] = {}
    for entry in zip(*lists, strict=True):
        if entry[0].numel():
            # What one launch must have in common. Sizes of a multiple of 16 move in whole pieces.
            windowed = not (entry[1].is_contiguous() and entry[2].is_contiguous())
            even = not windowed and entry[0].numel() % 16 == 0
            kind = (windowed, even, entry[0] is entry[1], entry[1].dtype, entry[2].dtype)
            groups.setdefault(kind, []).append(entry)
    for (windowed, even, *_), entries in groups.items():
        _launch(entries, numbers, grad_scale, windowed=windowed, even=even)


def _launch(
    entries: list[tuple[Tensor, ...]], numbers: tuple[float, ...], grad_scale: float | Tensor, *,
    windowed: bool, even: bool,
) -> None:  # fmt: skip
    device = entries[0][0].device
    for entry in entries:
        _check(entry)
    addresses = tuple(entry[field].data_ptr() for field in range(_FIELDS) for entry in entries)
    windows: tuple[int, ...] = ()
    if windowed:
        windows = (
            *(entry[0].shape[1] for entry in entries),
            *(_row_stride(entry[1]) for entry in entries),
            *(_row_stride(entry[2]) for entry in entries),
        )
    parts = _parts(tuple(entry[0].numel() for entry in entries), device)
    table = _table(addresses + windows, device)
    on_device = isinstance(grad_scale, Tensor)
    master, param, grad = entries[0][:3]
    _step8[(parts.shape[0],)](
        table, parts, grad_scale if on_device else table, len(entries), *numbers,
        1.0 if on_device else float(grad_scale), on_device, master is not param, windowed,
        even and all(address % 16 == 0 for address in addresses),
        _TYPES[param.dtype], _TYPES[grad.dtype], _PART, _ROWS, BLOCK, num_warps=_WARPS,
    )  # fmt: skip


def _row_stride(window: Tensor) -> int:
    return int(window.stride(0)) if window.shape[0] > 1 else 0


def _check(entry: tuple[Tensor, ...]) -> None:
    master, param, grad, *moments = entry
    assert master.dtype == torch.float32, "adamw8_ takes fp32 masters"
    assert all(tensor.is_contiguous() for tensor in (master, *moments)), "adamw8_ takes dense masters and moments"
    for tensor in (param, grad):
        window = tensor.ndim == 2 and tensor.stride(1) == 1 and tensor.numel() < 2**31
        assert tensor.is_contiguous() or window, "adamw8_ takes dense tensors, or windows with a dense last dimension"
        assert tensor.shape == master.shape, "one shape for a master, its parameter and its gradient"
