"""RMS norm on CUDA: whole rows in registers, several narrow rows a program. See `norm.py` for what is computed.

Products and sums are not contracted (`enable_fp_fusion=False`): every variant of a kernel rounds alike, so what is
computed again in a backward pass is what the forward pass had, to the bit.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.fast.kernels.fp8_triton import inverted, quantised

__all__ = ["add_rms_norm", "add_rms_norm_fp8", "rms_norm_again", "rms_norm_backward"]

# Elements of a program where rows are narrow, and of a thread: enough loads in flight, no spilled register (sm_90).
TILE, FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 4096, 32, 16


@triton.jit
def _normalised(h, w, rstd, plus_one: tl.constexpr, dtype: tl.constexpr):
    """N as it is stored: the one expression behind the first pass and every later one."""
    scaled = h * rstd[:, None]
    if plus_one:
        n = (scaled * (1.0 + w.to(tl.float32))[None, :]).to(dtype)
    else:
        n = (scaled.to(dtype).to(tl.float32) * w.to(dtype).to(tl.float32)[None, :]).to(dtype)
    return n


@triton.jit(do_not_specialize=["m"])
def _forward(
    x_ptr, res_ptr, w_ptr, n_ptr, h_ptr, rstd_ptr, q_ptr, scale_ptr,
    m, d, x_stride, res_stride, n_stride, h_stride, q_stride, eps,
    has_res: tl.constexpr, again: tl.constexpr, plus_one: tl.constexpr, quantise: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    col = tl.arange(0, block)
    inside = row < m
    mask = inside[:, None] & (col < d)[None, :]
    row64 = row.to(tl.int64)[:, None]
    cols = col[None, :]
    stored = tl.load(x_ptr + row64 * x_stride + cols, mask=mask, other=0.0)
    h = stored.to(tl.float32)
    if has_res:
        h = h + tl.load(res_ptr + row64 * res_stride + cols, mask=mask, other=0.0).to(tl.float32)
        stored = h.to(stored.dtype)
        tl.store(h_ptr + row64 * h_stride + cols, stored, mask=mask)
        h = stored.to(tl.float32)
    if again:
        rstd = tl.load(rstd_ptr + row, mask=inside, other=0.0)
    else:
        rstd = tl.rsqrt(tl.sum(h * h, axis=1) / d + eps)
        tl.store(rstd_ptr + row, rstd, mask=inside)
    w = tl.load(w_ptr + col, mask=col < d, other=0.0)
    n = _normalised(h, w, rstd, plus_one, stored.dtype)
    tl.store(n_ptr + row64 * n_stride + cols, n, mask=mask)
    if quantise:
        n32 = n.to(tl.float32)
        amax = tl.max(tl.abs(n32), axis=1)
        scale = tl.where(amax == 0.0, 1.0, tl.div_rn(amax, 448.0 + tl.zeros_like(amax)))
        tl.store(scale_ptr + row, scale, mask=inside)
        tl.store(q_ptr + row64 * q_stride + cols, quantised(n32, inverted(scale)[:, None]), mask=mask)


@triton.jit(do_not_specialize=["m"])
def _backward(
    dn_ptr, h_ptr, w_ptr, rstd_ptr, dh_ptr, out_ptr, partial_ptr,
    m, d, dn_stride, h_stride, dh_stride, out_stride,
    has_dh: tl.constexpr, plus_one: tl.constexpr, need_weight: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, block)
    cols = col[None, :]
    w = tl.load(w_ptr + col, mask=col < d, other=0.0).to(tl.float32)
    if plus_one:
        w = w + 1.0
    dweight = tl.zeros((rows, block), dtype=tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(m, rows), tl.num_programs(0)):
        row = tile * rows + tl.arange(0, rows)
        mask = (row < m)[:, None] & (col < d)[None, :]
        row64 = row.to(tl.int64)[:, None]
        dn = tl.load(dn_ptr + row64 * dn_stride + cols, mask=mask, other=0.0).to(tl.float32)
        h = tl.load(h_ptr + row64 * h_stride + cols, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < m, other=0.0)[:, None]
        hat = h * rstd
        if need_weight:
            dweight += dn * hat
        g = dn * w[None, :]
        mean = (tl.sum(g * hat, axis=1) / d)[:, None]
        grad = rstd * (g - hat * mean)
        if has_dh:
            grad += tl.load(dh_ptr + row64 * dh_stride + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + row64 * out_stride + cols, grad.to(out_ptr.dtype.element_ty), mask=mask)
    if need_weight:
        total = tl.sum(dweight, axis=0)
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * d + col, total, mask=col < d)


def _shape(width: int, elements_a_thread: int) -> tuple[int, int, int]:
    """(rows a program, columns a program, warps): at least `TILE` elements a program, rows whole."""
    block = max(16, triton.next_power_of_2(width))
    rows = max(1, TILE // block)
    return rows, block, min(32, max(4, rows * block // (32 * elements_a_thread)))


@cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 2


def _run_forward(
    x: Tensor, weight: Tensor, rstd: Tensor, n: Tensor, eps: float, residual: Tensor | None, h: Tensor,
    again: bool, plus_one: bool, q: Tensor | None = None, scale: Tensor | None = None,
) -> None:  # fmt: skip
    m, d = x.shape
    rows, block, warps = _shape(d, FORWARD_ELEMENTS)
    res = x if residual is None else residual
    _forward[(triton.cdiv(m, rows),)](
        x, res, weight, n, h, rstd, n if q is None else q, rstd if scale is None else scale,
        m, d, x.stride(0), res.stride(0), n.stride(0), h.stride(0), 0 if q is None else q.stride(0), eps,
        residual is not None, again, plus_one, q is not None, rows, block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip


def add_rms_norm(
    x_md: Tensor, weight_d: Tensor, eps: float, residual_md: Tensor | None, plus_one: bool, out_md: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `norm.add_rms_norm`."""
    n_md = torch.empty(x_md.shape, dtype=x_md.dtype, device=x_md.device) if out_md is None else out_md
    h_md = x_md if residual_md is None else torch.empty(x_md.shape, dtype=x_md.dtype, device=x_md.device)
    rstd_m = torch.empty(x_md.shape[0], dtype=torch.float32, device=x_md.device)
    _run_forward(x_md, weight_d, rstd_m, n_md, eps, residual_md, h_md, False, plus_one)
    return n_md, h_md, rstd_m


def add_rms_norm_fp8(
    x_md: Tensor, weight_d: Tensor, eps: float, residual_md: Tensor | None, plus_one: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `fp8.add_rms_norm_fp8`."""
    n_md = torch.empty(x_md.shape, dtype=x_md.dtype, device=x_md.device)
    h_md = x_md if residual_md is None else torch.empty_like(n_md)
    rstd_m = torch.empty(x_md.shape[0], dtype=torch.float32, device=x_md.device)
    q_md = torch.empty(x_md.shape, dtype=torch.float8_e4m3fn, device=x_md.device)
    scale_m1 = torch.empty((x_md.shape[0], 1), dtype=torch.float32, device=x_md.device)
    _run_forward(x_md, weight_d, rstd_m, n_md, eps, residual_md, h_md, False, plus_one, q_md, scale_m1)
    return n_md, h_md, rstd_m, q_md, scale_m1


def rms_norm_again(h_md: Tensor, weight_d: Tensor, rstd_m: Tensor, plus_one: bool, out_md: Tensor | None) -> Tensor:
    """As `norm.rms_norm_again`."""
    n_md = torch.empty(h_md.shape, dtype=h_md.dtype, device=h_md.device) if out_md is None else out_md
    _run_forward(h_md, weight_d, rstd_m, n_md, 0.0, None, h_md, True, plus_one)
    return n_md


def rms_norm_backward(
    dn_md: Tensor, h_md: Tensor, weight_d: Tensor, rstd_m: Tensor, plus_one: bool,
    dh_md: Tensor | None, out_md: Tensor | None, need_weight: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `norm.rms_norm_backward`."""
    m, d = dn_md.shape
    rows, block, warps = _shape(d, BACKWARD_ELEMENTS)
    grad_md = torch.empty(dn_md.shape, dtype=dn_md.dtype, device=dn_md.device) if out_md is None else out_md
    programs = triton.cdiv(m, rows)
    if need_weight:
        programs = min(programs, _processors(dn_md.device) * max(2, 16 // warps))
    partial = torch.empty((programs, d), dtype=torch.float32, device=dn_md.device) if need_weight else rstd_m
    dh = dn_md if dh_md is None else dh_md
    _backward[(programs,)](
        dn_md, h_md, weight_d, rstd_m, dh, grad_md, partial,
        m, d, dn_md.stride(0), h_md.stride(0), dh.stride(0), grad_md.stride(0),
        dh_md is not None, plus_one, need_weight, rows, block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return grad_md, partial.sum(dim=0) if need_weight else None
