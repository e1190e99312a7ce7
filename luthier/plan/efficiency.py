"""Every constant of the plan that is fitted or assumed, in one table.

Rates are relative to what a device reaches (`plan/devices.py`), so that one table serves all devices. They are fitted
to the steps of one H200 in `plan/measured.jsonl` and to their kernels (traces; benchmarks/gpu/kernels.py,
attention.py, adamw8.py, probes.py); `tests/plan/test_measured.py` holds the fit, docs/plan.md shows it. The rows are
the ones that the constants were chosen on: none was held out. Rows with `changed` ran code that is no longer there, and
the plan is not fitted to their time. To fit anew:
`python tests/plan/fit.py results.jsonl` puts the parts of the plan beside traced ones; change a number here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CPU_EFFICIENCY", "EFFICIENCY", "Efficiency", "efficiency_of"]

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """See the head of this file. Fields that are bytes or seconds say so."""

    product: float = 0.955
    """Share of the device's rate for a product of unbounded size."""
    tile: float = 60.0
    """A product (M, K) x (K, N) takes 1 + tile (1/M + 1/N + 1/K) of its ideal time: fill and drain of tiles."""
    weight_gradient: float = 1.10
    """Factor on the time of products that are gradients of weights, fitted to whole steps. Traced, such products take
    1.03 (8B) and 1.06 (1B) times as long as the others of the same step; in full tuning of 8B the others, too, run
    slower than with LoRA, and the cause of that was not looked for."""
    fp8_product: float = 0.94
    """As `product`, for fp8 operands."""
    fp32_product: float = 0.85
    attention: float = 0.52
    """Share of the device's bf16 rate inside the engine's kernels on long documents (`fast/kernels/attention.py`)."""
    attention_tile: float = 650.0
    """A document of n tokens costs n (n + attention_tile) instead of n^2. 8B, a layer: 1.29 ms at 396 tokens seen
    (traced), about 2.75 at 1,690 (from the difference of two steps). A compromise: traced, heads
    of 128 (8B) take 8% more than this, heads of 64 7% (135M) to 15% (1B) less."""
    attention_fallback: float = 0.46
    """The same two for other head widths and families without a layer of the engine's own, which take FlashAttention-2
    from torch: 78 TFLOP/s at 303 tokens, 235 at 2,048."""
    attention_fallback_tile: float = 1100.0
    elementwise: float = 0.86
    """Share of the copy bandwidth in norms, RoPE, GLU and losses."""
    optimizer: float = 0.84
    """Share of the copy bandwidth in optimizer updates and the gradient's norm; 0.94 in the update alone."""
    thin: float = 0.82
    """Share of the copy bandwidth in thin LoRA products that read activations for gradients of A and B."""
    added: float = 0.60
    """The same where an adapter's part is added to what the base gave, outside an extended matrix: traced, 57 ms of a
    step of 8B on fp8."""
    launch_seconds: float = 49e-6
    """Of a kernel's launch by the host, Python around it included; fitted to four small steps, which scatter by 20%
    and more from one to the next. Triton's launches alone take 17 to 50 us on that host."""
    launches_per_layer: float = 37.0
    """Kernels of a step with a trained model by its layers, counted in traces (37 and 38)."""
    adapter_launches: float = 30.0
    """More of them with adapters (67 in all)."""
    launches_forward: float = 0.4
    """Share of them in the forward pass; as the phases of small steps take."""
    launches_batch: float = 50.0
    """Kernels of a micro-batch outside the decoder layers: embeddings, head, loss. With `launches_step` fitted, the
    split between the two assumed."""
    launches_step: float = 150.0
    """Kernels of the update."""
    step_seconds: float = 9e-3
    """Of one optimizer step in which no kernel runs, since the update does not wait for the host: fitted to the eight
    main rows (5 to 13 ms in traced steps). What the host does then was not traced."""
    slow_layers: float = 1.25
    """Factor on elementwise work for families without a layer of the engine's own."""
    exposed_communication: float = 0.15
    """Share of overlapped communication that is not hidden behind compute."""
    link: float = 0.75
    """Share of the link bandwidth that collectives reach."""

    skew: float = 0.045
    """Share of the work that a step over several devices takes longer, for it waits for the slowest: 8B LoRA under DDP,
    whose exchange is small, took 431 ms on two H200s and 410 on one. One row; more devices may wait longer."""

    context_bytes: int = 640 * MIB
    """CUDA context, loaded kernels, libraries: outside the allocator."""
    workspace_bytes: int = 96 * MIB
    """cuBLAS workspaces, inside the allocator."""
    communication_bytes: int = 1 * GIB
    """NCCL buffers and buckets of several devices."""
    fragmentation: float = 0.03
    """Share of the allocated peak that the allocator holds on top (expandable segments)."""
    sharded_fragmentation: float = 0.06
    """The same under FSDP2 with adapters: 48.5 GiB held where 45.6 were the peak (8B, two H200s)."""
    sharded_trained_fragmentation: float = 0.15
    """The same where sharded weights are trained, whose reductions have their own pool: 42.9 GiB held of 37.0, 48.8 of
    42.3, 75.8 of 66.8."""
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
    weight_gradient=1.0,
    attention=0.3,
    attention_tile=64.0,
    attention_fallback=0.3,
    attention_fallback_tile=64.0,
    elementwise=0.80,
    optimizer=0.75,
    thin=0.55,
    added=0.55,
    step_seconds=0.02,
    head_chunk_bytes=64 << 20,
)
"""On a processor: no tiles to fill on large grids, attention per document through SDPA. Fitted, with the rates of a
core (`plan/machine.py`), to 395 (LoRA fp32), 624 (LoRA bf16), 302 (full fp32) and 477 (full bf16) tokens/s of
SmolLM2-135M on two cores (benchmarks/results/cpu_vs_trl.md)."""


def efficiency_of(device_type: str) -> Efficiency:
    """The table for `cuda` or `cpu`."""
    return CPU_EFFICIENCY if device_type == "cpu" else EFFICIENCY
