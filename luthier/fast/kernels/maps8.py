"""Adam's moments in 8 bits: blocks of 256 values, each with its largest magnitude a in fp32.

    first moment    m = a s (|q| / 127)^4   q = round(127 (|m| / a)^(1/4)), s its sign     stored as q + 128
    second moment   v = a (q / 255)^8       q = round(255 (v / a)^(1/8)), at least 1 where v > 0, so never rounded to 0

Rounding is to the nearest code, ties to even; a itself is kept exactly. A block whose a is below 2^-126 is all zeros.

Against bitsandbytes' dynamic map, rms error of m / (sqrt(v) + eps) relative to fp64 over 300 steps with beta2 0.999,
eps a thousandth of the median gradient, spread of v inside blocks in decades (`benchmarks/gpu/adamw8.py --maps`):
this map 0.04 at 2 decades, 0.07 at 4, 0.11 at 6, 0.17 at 8; sparse 0.03, rows of an embedding 0.03; largest update 1.8x
dynamic  0.06, 0.25, 4.5, 18; sparse 0.15, embedding 0.16: v rounds to 0; largest update 1 to 660 times fp64's
dynamic, v kept positive: 0.06, 0.13, 0.26, 0.45; sparse 0.07, embedding 0.06; largest update 2.0x
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["BLOCK", "blocks", "decode_signed", "decode_unsigned", "encode_signed", "encode_unsigned"]

BLOCK = 256
SMALLEST = 2.0**-126
"""Smallest largest magnitude: below it fp32 has no full precision and no reciprocal."""


def blocks(elements: int) -> int:
    """Blocks that hold so many values; the last may be short."""
    return -(-elements // BLOCK)


def encode_signed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 as x, largest magnitudes fp32 (blocks,)) of a first moment. NaN and inf are not kept."""
    y, absmax = _relative(x)
    code = torch.round(y.abs().sqrt().sqrt().mul_(127.0)).copysign_(y).add_(128.0)
    return _stored(code, x), absmax


def encode_unsigned(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 of the shape of x, largest values fp32 (blocks,)) of a second moment, which is nowhere negative."""
    y, absmax = _relative(x)
    code = torch.round(y.sqrt().sqrt_().sqrt_().mul_(255.0))
    return _stored(torch.maximum(code, (y > 0.0).to(code.dtype)), x), absmax


def decode_signed(codes: Tensor, absmax: Tensor) -> Tensor:
    """fp32 first moment of the shape of `codes`."""
    r = _rows(codes, value=128).to(torch.float32).sub_(128.0).mul_(1.0 / 127.0)
    return _like((r * r).mul_(r * r.abs()).mul_(absmax[:, None]), codes)


def decode_unsigned(codes: Tensor, absmax: Tensor) -> Tensor:
    """fp32 second moment of the shape of `codes`."""
    r = _rows(codes, value=0).to(torch.float32).mul_(1.0 / 255.0)
    return _like(r.square_().square_().square_().mul_(absmax[:, None]), codes)


def _relative(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x over its block's largest magnitude (blocks, 256), those magnitudes (blocks,))."""
    rows = _rows(x.to(torch.float32), value=0)
    absmax = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1)
    absmax = torch.where(absmax >= SMALLEST, absmax, 0.0)
    inverse = torch.where(absmax > 0.0, 1.0 / absmax, 0.0)
    return rows * inverse[:, None], absmax


def _rows(x: Tensor, *, value: int) -> Tensor:
    """(blocks, 256), the end of the last block filled."""
    flat = x.reshape(-1)
    missing = -flat.numel() % BLOCK
    return (F.pad(flat, (0, missing), value=value) if missing else flat).view(-1, BLOCK)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1)[: x.numel()].view(x.shape)


def _stored(code: Tensor, x: Tensor) -> Tensor:
    return _like(code.to(torch.uint8), x)
