"""What `attention.py` runs: batches like those of training, shapes that are odd, and the blocks to choose from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.fast.kernels.attention import packed_attention_backward_reference, packed_attention_reference
from luthier.fast.kernels.attention_schedule import Blocks, Schedule

KERNELS = ("forward", "dq", "dkdv")
Shape = tuple[int, int, int]  # query heads, key/value heads, head width
ODD = (300, 1, 63, 64, 65, 127, 1, 128, 129, 517, 33)


class Case(NamedTuple):
    name: str
    shape: Shape
    tokens: int
    mean: int
    longest: int


CASES = (
    Case("32/8x128 mean 300", (32, 8, 128), 16384, 300, 1024),
    Case("32/8x128 mean 1200", (32, 8, 128), 16384, 1200, 4096),
    Case("32/8x128 one document", (32, 8, 128), 16384, 16384, 16384),
    Case("9/3x64 mean 300", (9, 3, 64), 65536, 300, 1024),
    Case("14/2x64 mean 300", (14, 2, 64), 32768, 300, 1024),
    Case("32/8x64 mean 300", (32, 8, 64), 16384, 300, 1024),
)
# (query heads, key/value heads, width, lengths, window, dtype, rotated)
CHECKS = (
    (32, 8, 128, ODD, None, "bfloat16", True),
    (9, 3, 64, ODD, None, "bfloat16", True),
    (14, 2, 64, ODD, None, "bfloat16", True),
    (6, 6, 64, ODD, None, "float16", False),
    (8, 2, 256, ODD, None, "bfloat16", True),
    (8, 1, 256, ODD, 100, "bfloat16", True),
    (8, 2, 128, ODD, 2, "bfloat16", False),
    (8, 2, 128, ODD, 17, "bfloat16", True),
    (9, 3, 64, ODD, 64, "bfloat16", True),
    (14, 2, 64, (1,) * 50 + ODD, 130, "float16", True),
    (4, 2, 128, (2311, 40, 1), None, "bfloat16", True),
    (4, 2, 64, (2311, 40, 1), 300, "bfloat16", True),
    (2, 2, 256, (2311, 40, 1), None, "bfloat16", True),
    (48, 2, 64, ODD, None, "bfloat16", True),
)


def b(rows: int, keys: int, warps: int, stages: int, packed: bool = True) -> Blocks:
    return Blocks(rows, keys, warps, stages, packed)


CANDIDATES: dict[tuple[str, int], tuple[Blocks, ...]] = {
    ("forward", 128): (
        b(64, 64, 4, 2), b(64, 64, 4, 1), b(64, 32, 4, 2), b(64, 64, 4, 3), b(128, 64, 8, 2), b(128, 64, 8, 3),
        b(128, 128, 8, 2), b(128, 32, 8, 2), b(128, 32, 8, 3),
        b(64, 64, 4, 2, False), b(128, 64, 8, 3, False), b(128, 128, 8, 2, False),
    ),
    ("dq", 128): (
        b(64, 64, 4, 2), b(64, 64, 4, 1), b(64, 32, 4, 2), b(64, 32, 4, 3), b(128, 64, 8, 2), b(128, 32, 8, 2),
        b(64, 64, 4, 2, False), b(128, 64, 8, 2, False),
    ),
    ("dkdv", 128): (
        b(32, 64, 4, 2), b(32, 64, 4, 1), b(64, 64, 4, 2), b(32, 128, 8, 2), b(64, 128, 8, 2), b(16, 64, 4, 2),
        b(32, 64, 4, 2, False), b(64, 128, 8, 2, False),
    ),
    ("forward", 64): (
        b(64, 64, 4, 2), b(64, 64, 4, 3), b(64, 64, 4, 1), b(64, 32, 4, 2), b(64, 128, 4, 2), b(128, 64, 8, 2),
        b(128, 64, 4, 2), b(64, 64, 4, 2, False),
    ),
    ("dq", 64): (
        b(64, 64, 4, 2), b(64, 64, 4, 1), b(64, 32, 4, 2), b(64, 128, 4, 2), b(128, 64, 8, 2), b(64, 64, 4, 2, False),
    ),
    ("dkdv", 64): (
        b(32, 64, 4, 2), b(32, 64, 4, 1), b(64, 64, 4, 2), b(64, 64, 4, 1), b(64, 128, 8, 2), b(32, 128, 8, 2),
        b(64, 64, 4, 2, False),
    ),
}  # fmt: skip


class Batch:
    """Inputs on the GPU, as the engine has them: q, k, v in one wider buffer, the gradient into another."""

    def __init__(self, shape: Shape, lengths: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> None:
        self.heads, self.groups, self.width = shape
        self.total = (self.heads + 2 * self.groups) * self.width
        tokens = sum(lengths)
        made = torch.Generator("cuda").manual_seed(1)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, device="cuda", generator=made).to(dtype)

        self.scale, self.lengths, self.tokens = self.width**-0.5, lengths, tokens
        self.schedule = Schedule.of(lengths, "cuda")
        self.q, self.k, self.v = self.parts(random(tokens, self.total + 64)[:, : self.total])
        self.dout = random(tokens, self.heads, self.width)
        self.cos, self.sin = random(tokens, self.width), random(tokens, self.width)
        self.room = torch.full((tokens, self.total + 64), 7.0, device="cuda", dtype=dtype)
        self.dqkv = self.room[:, : self.total]
        bounds = torch.tensor((0, *lengths), device="cuda").cumsum(0).int()
        self.bounds = (bounds, bounds, max(lengths), max(lengths), 0.0)

    def parts(self, stacked: Tensor) -> tuple[Tensor, ...]:
        sizes = (self.heads, self.groups, self.groups)
        return stacked.unflatten(1, (sum(sizes), self.width)).split(sizes, dim=1)

    def flash(self, window: int | None = None) -> tuple[Tensor, ...]:
        edges = {"window_size_left": None if window is None else window - 1,
                 "window_size_right": None if window is None else 0}  # fmt: skip
        return torch.ops.aten._flash_attention_forward(
            self.q, self.k, self.v, *self.bounds, window is None, False, scale=self.scale, **edges
        )

    def flash_backward(self, found: tuple[Tensor, ...], window: int | None = None) -> tuple[Tensor, ...]:
        out, lse, rng, unused, *_ = found
        edges = {"window_size_left": None if window is None else window - 1,
                 "window_size_right": None if window is None else 0}  # fmt: skip
        return torch.ops.aten._flash_attention_backward(
            self.dout, self.q, self.k, self.v, out, lse, *self.bounds, window is None, rng, unused, scale=self.scale,
            **edges,
        )  # fmt: skip

    def exact(self, window: int | None, rotated: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Out, lse and the gradients in fp64."""
        inputs = [part.double() for part in (self.q, self.k, self.v)]
        out, lse = packed_attention_reference(*inputs, self.schedule, scale=self.scale, window=window)
        grads = torch.empty(self.tokens, self.total, device="cuda", dtype=torch.float64)
        packed_attention_backward_reference(
            self.dout.double(), *inputs, out, lse, self.schedule, scale=self.scale, window=window,
            cos_sin=(self.cos.double(), self.sin.double()) if rotated else None, dqkv_out=grads,
        )  # fmt: skip
        return out, lse, grads


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-2))


def named_errors(batch: Batch, out: Tensor, grads: Tensor, exact: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    errors = {"out": error(out, exact[0])}
    for name, got, want in zip(("dq", "dk", "dv"), batch.parts(grads), batch.parts(exact[2]), strict=True):
        errors[name] = error(got, want)
    return errors


def some_lengths(case: Case) -> tuple[int, ...]:
    """Log-normal lengths of about the mean (sigma 0.5, or 0.8 up to 4096), cut at the longest, of sum `tokens`."""
    if case.mean >= case.tokens:
        return (case.tokens,)
    made, sigma = torch.Generator().manual_seed(3), 0.5 if case.longest < 4096 else 0.8
    lengths: list[int] = []
    while sum(lengths) < case.tokens:
        drawn = float(torch.randn((), generator=made).mul(sigma).exp()) * case.mean / math.exp(sigma**2 / 2)
        lengths.append(max(1, min(int(drawn), case.longest, case.tokens - sum(lengths))))
    return tuple(lengths)


def short(blocks: Blocks) -> str:
    return ".".join(map(str, blocks[:4])) + ("" if blocks.packed else "n")
