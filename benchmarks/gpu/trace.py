"""One step under torch's profiler: kernels, their groups, and how long the device had nothing to do.

    big products     matrix products whose smallest side is above 128
    thin products    the others (LoRA's)
    attention        flash / cuDNN / memory-efficient attention kernels
    copies, casts    memcpy, memset, copy and cast kernels, concatenation
    optimizer        fused AdamW, multi-tensor kernels (norm, clipping), 8-bit optimizers
    loss             softmax and cross-entropy kernels
    exchange         NCCL
    elementwise      torch's elementwise and reduction kernels, and Triton's (norm, rotary, activation)
    other            the rest

`host_top_ms` are the host's operators and calls by the time in them alone, all threads together.
`exposed_exchange_ms` is the time in which nothing but NCCL ran, or waited for another process. `idle_ms` is the
unprofiled median step minus the time in which at least one kernel ran in the profiled one: the profiler slows the host
down, not the kernels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

THIN = 128
_PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm", "aten::_int_mm",
    "aten::linear", "aten::matmul",
}  # fmt: skip
_OURS = {
    "attention": ("dq_kernel", "dkdv_kernel", "forward_kernel"),
    "loss": ("_rows",),
    "optimizer": ("_step", "_step8", "_scale"),
    "elementwise": ("_forward", "_backward", "_rope", "_quantize", "_glu", "_glu_backward"),
}
"""Names of the Triton kernels in luthier/fast/kernels; norm and GLU are both `_forward` and `_backward`."""
_GROUPS = (
    ("exchange", r"nccl"),
    ("optimizer", r"adam|multi_tensor|foreach|koptimizer|blockwise8bit|lamb_|lpnorm"),
    ("products", r"aten::addmm|aten::mm|linear_pointwise|gemm|nvjet|cutlass|cublas|xmma|wgmma|scaled_mm|splitk"),
    ("attention", r"flash|fmha|attention|attn|mha_"),
    ("loss", r"cross_entropy|softmax|nll|logsumexp"),
    ("copies, casts", r"memcpy|memset|copy|catarray|\bcast|to_copy|index_put|fill"),
    ("elementwise", r"elementwise|vectorized|reduce|triton|_kernel|norm|rope|glu|quantize"),
)


def group_of(name: str) -> str:
    """Group of a kernel by its name; `products` are split by shape later."""
    ours = next((group for group, names in _OURS.items() if name in names), None)
    if ours is not None:
        return ours
    lowered = name.lower()
    if re.search(r"flash|fmha", lowered):  # cutlass attention kernels are no products
        return "attention"
    return next((group for group, pattern in _GROUPS if re.search(pattern, lowered)), "other")


def profile_step(run_step: Callable[[], Any], *, device: str, step_ms: float, top: int = 25) -> dict[str, Any]:
    """Profile one step; see the head of this file. On a CPU operators stand for kernels."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        run_step()
        if cuda:
            import torch

            torch.cuda.synchronize()
    events = list(profiler.events())
    kernels = _device_kernels(events) if cuda else _host_operators(events)
    thin_ms = _thin_products_ms(events, cuda=cuda)
    groups: dict[str, float] = {}
    names: dict[str, list[float]] = {}
    for name, start, end in kernels:
        groups[group_of(name)] = groups.get(group_of(name), 0.0) + (end - start) / 1e3
        names.setdefault(name, []).append((end - start) / 1e3)
    products = groups.pop("products", 0.0)
    groups = {"big products": products - thin_ms, "thin products": thin_ms, **groups}
    busy = _union_ms([(start, end) for _, start, end in kernels]) if cuda else sum(map(sum, names.values()))
    computing = [(start, end) for name, start, end in kernels if group_of(name) != "exchange"]
    exposed = busy - _union_ms(computing) if cuda else 0.0
    copies = sum(1 for name, _, _ in kernels if name.startswith(("Memcpy", "Memset")))
    leading = sorted(names.items(), key=lambda item: -sum(item[1]))[:top]
    host: dict[str, float] = {}
    for name, _, spent in _host_operators(events):
        host[name] = host.get(name, 0.0) + spent / 1e3
    return {
        "kernels": len(kernels) - copies, "memory_operations": copies, "busy_ms": round(busy, 2),
        "idle_ms": round(step_ms - busy, 2), "exposed_exchange_ms": round(exposed, 2),
        "groups_ms": {name: round(ms, 2) for name, ms in sorted(groups.items(), key=lambda item: -item[1])},
        "host_top_ms": {name[:90]: round(ms, 1) for name, ms in sorted(host.items(), key=lambda item: -item[1])[:top]},
        "top": [[name[:90], len(times), round(sum(times), 2)] for name, times in leading],
    }  # fmt: skip


def _device_kernels(events: Iterable[Any]) -> list[tuple[str, float, float]]:
    """(name, start, end) in microseconds of everything that ran on the device."""
    from torch.autograd import DeviceType

    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]


def _host_operators(events: Iterable[Any]) -> list[tuple[str, float, float]]:
    return [(event.name, 0.0, float(event.self_cpu_time_total)) for event in events if event.self_cpu_time_total > 0]


def _thin_products_ms(events: Iterable[Any], *, cuda: bool) -> float:
    """Time in products with a side of at most `THIN`, found by the shapes of the operators that launched them."""
    total = 0.0
    for event in events:
        if event.name not in _PRODUCTS:
            continue
        spent = sum(kernel.duration for kernel in event.kernels) if cuda else event.self_cpu_time_total
        factors = _factors(event.name, event.input_shapes or ())
        if factors and min(min(shape[-2:]) for shape in factors) <= THIN:
            total += spent / 1e3
    return total


def _factors(name: str, shapes: Sequence[Any]) -> list[list[int]]:
    """Shapes of the two matrices; what is added comes before them, scales of 8-bit products after them."""
    first = 1 if "add" in name else 0
    found = [shape for shape in shapes[first : first + 2] if isinstance(shape, list) and len(shape) >= 2]
    return found if len(found) == 2 else []


def _union_ms(ranges: list[tuple[float, float]]) -> float:
    """Milliseconds covered by at least one of the ranges (microseconds)."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / 1e3
