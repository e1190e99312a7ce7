"""Every constant of the plan that is fitted or assumed, in one table. `tests/plan/test_efficiency.py` holds the fit.

Rates are relative to what a device reaches (`plan/devices.py`), so that one table serves all devices. To fit them to a
measured step, put its parts beside `StepTime` and change a number here; docs/hardware.md is then written anew.

Measured on one H200 (shared/design.md §5, shared/gpu/README.md): 8B LoRA 16k tokens a step 980 ms, of it about 620 big
products, 103 attention with padded cu_seqlens (58 without), 74 elementwise, 148 thin products and head; attention
forward and backward of 16,384 tokens, 32/8 heads of 128: 1.82 ms over 54 documents, 4.09 ms over 8 rows of 2,048
(flash), fp8 base 317 ms of big products. End to end: 8B LoRA 17.2k tokens/s, 1B full 74.8k, 0.5B full 156.8k, 135M
full 396.6k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CPU_EFFICIENCY", "EFFICIENCY", "Efficiency", "efficiency_of"]

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """See the head of this file. Fields that are bytes or seconds say so."""

    product: float = 0.98
    """Share of the device's rate for a product of unbounded size; 737 of 790 TFLOP/s at 8B widths with `tile`."""
    tile: float = 110.0
    """A product (M, K) x (K, N) takes 1 + tile (1/M + 1/N + 1/K) of its ideal time: fill and drain of tiles."""
    fp8_product: float = 0.94
    """The same for fp8 operands; 317 ms against 620 in bf16."""
    fp32_product: float = 0.85
    attention: float = 0.46
    """Share of the device's bf16 rate inside FA2-class kernels on long documents: 361 of 790 TFLOP/s."""
    attention_tile: float = 1100.0
    """A document of n tokens costs n (n + attention_tile) instead of n^2: 78 TFLOP/s at 303 tokens, 235 at 2,048."""
    elementwise: float = 0.80
    """Share of the copy bandwidth in norms, RoPE, GLU and losses; 0.72 compiled, 0.85 with single kernels."""
    optimizer: float = 0.75
    """Share of the copy bandwidth in optimizer updates."""
    thin: float = 0.55
    """Share of the copy bandwidth in thin LoRA products that read activations for gradients of A and B."""
    launch_seconds: float = 4.5e-6
    launches_per_layer: float = 40.0
    """Kernels a decoder layer launches forward and backward; the host must keep up with the device."""
    adapter_launches: float = 24.0
    """More of them with adapters."""
    step_seconds: float = 4e-3
    """Of one optimizer step besides its kernels: collate, copies, logging."""
    slow_layers: float = 1.25
    """Factor on elementwise work for families without a layer of the engine's own."""
    exposed_communication: float = 0.15
    """Share of overlapped communication that is not hidden behind compute."""
    link: float = 0.75
    """Share of the link bandwidth that collectives reach."""

    context_bytes: int = 640 * MIB
    """CUDA context, loaded kernels, libraries: outside the allocator."""
    workspace_bytes: int = 96 * MIB
    """cuBLAS workspaces, inside the allocator."""
    communication_bytes: int = 1 * GIB
    """NCCL buffers and buckets of several devices."""
    fragmentation: float = 0.03
    """Share of the allocated peak that the allocator holds on top (expandable segments)."""
    process_bytes: int = 450 * MIB
    """A CPU process with its libraries, before any weight."""
    safety: float = 0.04
    """Share of the device that a chosen setting leaves free."""
    head_chunk_bytes: int = 2 << 30
    """Bytes of a chunk of logits in the compute type (`fast/head.py`); on a CPU 64 MiB in fp32."""
    head_chunk_rows: int = 8192
    fp8_keeps_base: bool = True
    """The modules keep their 16-bit weights beside the two fp8 copies (`fast/decoder/fp8_base.py`)."""
    dequantized_keeps_packed: bool = True
    """The packed weights stay beside the unpacked copy (`fast/decoder/bases.py`)."""


EFFICIENCY = Efficiency()
"""The constants in use on a GPU."""

CPU_EFFICIENCY = replace(
    EFFICIENCY,
    product=0.85,
    fp32_product=0.85,
    tile=16.0,
    attention=0.3,
    attention_tile=64.0,
    step_seconds=0.02,
    head_chunk_bytes=64 << 20,
)
"""On a processor: no tiles to fill on large grids, attention per document through SDPA. Fitted, with the rates of a
core (`plan/machine.py`), to 395 (LoRA fp32), 624 (LoRA bf16), 302 (full fp32) and 477 (full bf16) tokens/s of
SmolLM2-135M on two cores (benchmarks/results/cpu_vs_trl.md)."""


def efficiency_of(device_type: str) -> Efficiency:
    """The table for `cuda` or `cpu`."""
    return CPU_EFFICIENCY if device_type == "cpu" else EFFICIENCY
