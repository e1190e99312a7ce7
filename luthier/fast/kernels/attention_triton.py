"""Launches of the attention kernels on CUDA. See `attention.py` for what is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.fast.kernels.attention_backward_triton import dkdv_kernel, dq_kernel
from luthier.fast.kernels.attention_forward_triton import forward_kernel
from luthier.fast.kernels.attention_schedule import Blocks, Schedule

__all__ = ["backward", "backward_dkdv", "backward_dq", "forward"]

LOG2E = 1.4426950408889634
Pair = tuple[Tensor, Tensor]
Candidate = tuple[Blocks, Blocks, Blocks]


def forward(
    q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, scale: float, window: int | None, out_thk: Tensor | None,
    blocks: Candidate | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `attention.packed_attention`; `blocks` instead of those of the table."""
    tokens, heads, width = q.shape
    out = torch.empty((tokens, heads, width), dtype=q.dtype, device=q.device) if out_thk is None else out_thk
    _assert_heads(q, k, v, out)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    group = heads // k.shape[1]
    (rows, keys, warps, stages, _), pack, table = schedule.plan(group, width, blocks).forward
    windowed = window is not None and window < schedule.longest
    forward_kernel[(table.shape[0] * (heads // pack),)](
        q, k, v, out, lse, table, tokens, q.stride(0), k.stride(0), v.stride(0), out.stride(0),
        scale * LOG2E, window if windowed else 0,
        heads, group, pack, windowed, schedule.prefixed, rows, keys, width, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, schedule: Schedule, scale: float,
    window: int | None, cos_sin: Pair | None, dqkv: Tensor, blocks: Candidate | None = None,
) -> None:  # fmt: skip
    """As `attention.packed_attention_backward`; `blocks` instead of those of the table."""
    _assert_heads(dout, q, k, v, out)
    assert lse.is_contiguous() and dqkv.stride(1) == 1, "lse comes from `forward`, rows of the gradient are dense"
    delta = torch.empty_like(lse)
    backward_dq(dout, q, k, v, out, lse, delta, schedule, scale, window, cos_sin, dqkv, blocks)
    backward_dkdv(dout, q, k, v, lse, delta, schedule, scale, window, cos_sin, dqkv, blocks)


def _tables(cos_sin: Pair | None, unused: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Cos, sin and their row strides; any tensor where nothing is rotated."""
    if cos_sin is None:
        return unused, unused, (0, 0)
    cos, sin = cos_sin
    assert cos.stride(1) == sin.stride(1) == 1, "cos and sin are dense within a row"
    return cos, sin, (cos.stride(0), sin.stride(0))


def _assert_heads(*tensors: Tensor) -> None:
    for each in tensors:
        assert each.stride(2) == 1 and each.stride(1) == each.shape[2], "heads of a token lie next to each other"


def backward_dq(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, delta: Tensor, schedule: Schedule,
    scale: float, window: int | None, cos_sin: Pair | None, dqkv: Tensor,
    blocks: Candidate | None = None,
) -> None:  # fmt: skip
    """Write dq into the first columns of `dqkv`, and delta (H, T)."""
    tokens, heads, width = q.shape
    group = heads // k.shape[1]
    (rows, keys, warps, stages, _), pack, table = schedule.plan(group, width, blocks).dq
    windowed = window is not None and window < schedule.longest
    cos, sin, turns = _tables(cos_sin, delta)
    dq_kernel[(table.shape[0] * (heads // pack),)](
        dout, q, k, v, out, lse, delta, cos, sin, dqkv, table, tokens,
        dout.stride(0), q.stride(0), k.stride(0), v.stride(0), out.stride(0), *turns,
        dqkv.stride(0), scale, scale * LOG2E, window if windowed else 0,
        heads, group, pack, windowed, schedule.prefixed, cos_sin is not None, rows, keys, width,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def backward_dkdv(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, schedule: Schedule, scale: float,
    window: int | None, cos_sin: Pair | None, dqkv: Tensor, blocks: Candidate | None = None,
) -> None:  # fmt: skip
    """Write dk and dv into the last columns of `dqkv`."""
    tokens, heads, width = q.shape
    groups = k.shape[1]
    (rows, keys, warps, stages, _), pack, table = schedule.plan(heads // groups, width, blocks).dkdv
    windowed = window is not None and window < schedule.longest
    cos, sin, turns = _tables(cos_sin, delta)
    dk, dv = dqkv[:, heads * width :], dqkv[:, (heads + groups) * width :]
    dkdv_kernel[(table.shape[0] * groups,)](
        dout, q, k, v, lse, delta, cos, sin, dk, dv, table, tokens,
        dout.stride(0), q.stride(0), k.stride(0), v.stride(0), *turns, dqkv.stride(0),
        scale, scale * LOG2E, window if windowed else 0,
        groups, heads // groups, pack, windowed, schedule.prefixed, cos_sin is not None, rows, keys, width,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
