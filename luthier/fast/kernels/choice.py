"""Which implementation of the kernels runs on a device."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["backend", "math_dtype", "uses_triton"]


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def backend(device: torch.device) -> tuple[str, str]:
    """(`triton` or `reference`, why) for tensors on `device`; what the engine's report says."""
    if device.type != "cuda":
        return "reference", f"plain torch operations on {device.type}"
    if not _has_triton():
        return "reference", "triton is not installed: slower, the same numbers; `pip install triton` gives the kernels"
    return "triton", "one launch an operation, math in fp32 (fp64 tensors take plain torch)"


def uses_triton(x: Tensor) -> bool:
    """Whether an op on `x` runs its Triton kernel."""
    return x.is_cuda and x.dtype is not torch.float64 and _has_triton()


def math_dtype(x: Tensor) -> torch.dtype:
    """The dtype that an op on `x` computes in."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32
