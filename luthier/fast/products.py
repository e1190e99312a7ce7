"""Which library multiplies matrices, and the three products of a linear layer on it.

torch sends fp32 products on an x86 CPU to MKL, which keeps to AVX2 on processors that are not
Intel's. oneDNN, in the same wheel, uses AVX-512 there: on a Zen 5 core 219 against 97 GFLOP/s at the
shapes of a 135M model, in the forward and both backward products, at the same fp32 precision (no
reduced-precision mode is involved). The choice follows from the processor alone, never from a
timing, so that a resumed run computes the same bits.

Legend: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from luthier.runtime.device import cpu_flags

__all__ = ["grad_input", "grad_weight", "product", "product_library", "products_beside", "uses_onednn"]

# Below this many rows (decoding one token for a few sequences) the products are bound by reading the
# weight and oneDNN's per-call setup costs more than it saves.
_MIN_ROWS = 16


@cache
def product_library() -> tuple[str, str]:
    """(`onednn` or `torch`, why) for fp32 products on this machine's CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "torch", "this torch has no oneDNN linear"
    vendor = _cpu_vendor()
    if vendor in {"", "GenuineIntel"}:
        return "torch", "MKL is at its best on this CPU" if vendor else "the maker of this CPU is unknown"
    if "avx512f" not in cpu_flags():
        return "torch", f"{vendor} CPU without AVX-512"
    return "onednn", f"MKL does not use AVX-512 on {vendor} CPUs, oneDNN does (2.2x measured on Zen 5)"


def uses_onednn(x_mk: Tensor) -> bool:
    """Whether a product with these rows goes to oneDNN."""
    return (
        x_mk.device.type == "cpu"
        and x_mk.dtype == torch.float32
        and x_mk.shape[0] >= _MIN_ROWS
        and product_library()[0] == "onednn"
    )


def product(x_mk: Tensor, weight_nk: Tensor, bias_n: Tensor | None = None) -> Tensor:
    """x W^T + b, (M, N). Not differentiable by itself: see `linear.py`."""
    if uses_onednn(x_mk):
        return _onednn(x_mk, weight_nk, bias_n)
    return torch.nn.functional.linear(x_mk, weight_nk, bias_n)


def products_beside(x_mk: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """[x W1^T + b1 | x W2^T + b2 | ...], (M, N1 + N2 + ...): each product writes its columns, nothing is copied."""
    if len(weights) == 1:
        return product(x_mk, weights[0], biases[0])
    if uses_onednn(x_mk):
        return torch.cat([product(x_mk, weight, bias) for weight, bias in zip(weights, biases, strict=True)], dim=1)
    sizes = [weight.shape[0] for weight in weights]
    out = x_mk.new_empty(x_mk.shape[0], sum(sizes))
    for columns, weight, bias in zip(out.split(sizes, dim=1), weights, biases, strict=True):
        if bias is None:
            torch.mm(x_mk, weight.t(), out=columns)
        else:
            torch.addmm(bias, x_mk, weight.t(), out=columns)
    return out


def grad_input(grad_mn: Tensor, weight_nk: Tensor) -> Tensor:
    """g W, (M, K)."""
    return _onednn(grad_mn, weight_nk.t()) if uses_onednn(grad_mn) else grad_mn @ weight_nk


def grad_weight(grad_mn: Tensor, x_mk: Tensor) -> Tensor:
    """g^T x, (N, K)."""
    return _onednn(grad_mn.t(), x_mk.t()) if uses_onednn(grad_mn) else grad_mn.t() @ x_mk


def _onednn(a_mk: Tensor, b_nk: Tensor, bias_n: Tensor | None = None) -> Tensor:
    # Where rows of the second operand lie apart oneDNN falls back to loops: 100 to 1,000 times slower than the copy.
    dense_nk = b_nk if b_nk.is_contiguous() or b_nk.t().is_contiguous() else b_nk.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a_mk, dense_nk, bias_n, "none", [], "")
    return out


@cache
def _cpu_vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
