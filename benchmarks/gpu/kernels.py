"""Every kernel of `luthier/fast/kernels` on this GPU: checked against fp64, and timed against its bandwidth floor.

    python3 benchmarks/gpu/kernels.py [--skip-checks] [--skip-times] [--skip-variants] [--tokens 16384] > kernels.jsonl

Needs torch and triton only. One JSON line a check that fails, one for the count of those that pass, one a timing.
A failure never ends the run. Floors: bytes read once and written once over the bandwidth that copying 2 GiB has here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from luthier.fast import head
from luthier.fast.kernels.adamw import adamw_
from luthier.fast.kernels.cross_entropy import cross_entropy_
from luthier.fast.kernels.fp8 import add_rms_norm_fp8, glu_fp8, quantize_rows
from luthier.fast.kernels.glu import glu, glu_backward
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_again, rms_norm_backward
from luthier.fast.kernels.rope import rope, rope_qkv_backward
from tests.fast.kernels.cases import Bench, all_checks

# hidden, heads, key/value heads, head width, intermediate, vocabulary
MODELS = {
    "llama-8b": (4096, 32, 8, 128, 14336, 128256),
    "llama-1b": (2048, 32, 8, 64, 8192, 128256),
    "qwen-0.5b": (896, 14, 2, 64, 4864, 151936),
    "smollm-135m": (576, 9, 3, 64, 1536, 49152),
}
PAD = 64  # columns that the engine's buffers have beside the matrix
Timing = tuple[str, str, int, Callable[[], object]]


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def layer_timings(name: str, m: int) -> Iterator[Timing]:
    """(op, shape, bytes moved at least, call)."""
    d, heads, groups, width, f, _ = MODELS[name]
    x, res, dn, weight = bf16(m, d), bf16(m, d), bf16(m, d), bf16(d)
    room = bf16(m, d + PAD)[:, :d]
    _, h, rstd = add_rms_norm(x, weight, eps=1e-5, residual_md=res)
    size, s = 2 * m * d, f"{name} {m}x{d}"
    yield "add_rms_norm", s, 4 * size, lambda: add_rms_norm(x, weight, eps=1e-5, residual_md=res, out_md=room)
    yield "rms_norm", s, 2 * size, lambda: add_rms_norm(x, weight, eps=1e-5, out_md=room)
    yield "rms_norm_again", s, 2 * size, lambda: rms_norm_again(h, weight, rstd, out_md=room)
    yield "rms_norm_backward", s, 4 * size, lambda: rms_norm_backward(dn, h, weight, rstd, dh_md=res, out_md=res)
    yield (
        "rms_norm_backward dw",
        s,
        4 * size,
        lambda: rms_norm_backward(dn, h, weight, rstd, dh_md=res, out_md=res, need_weight=True),
    )
    yield "add_rms_norm_fp8", s, 4 * size + size // 2, lambda: add_rms_norm_fp8(x, weight, eps=1e-5, residual_md=res)
    yield "quantize_rows", s, size + size // 2, lambda: quantize_rows(x)
    total = (heads + 2 * groups) * width
    qkv, out = bf16(m, total + PAD), bf16(m, total + PAD)[:, :total]
    qk = qkv[:, : (heads + groups) * width].unflatten(1, (heads + groups, width))
    q = qkv[:, : heads * width].unflatten(1, (heads, width))
    cos, sin = bf16(m, width), bf16(m, width)
    grads = [bf16(m, n, width) for n in (heads, groups, groups)]
    table = 4 * m * width
    s = f"{name} {m}x({heads},{groups})x{width}"
    yield "rope q in place", s, 4 * m * heads * width + table, lambda: rope(q, cos, sin, out_mhk=q)
    yield "rope q|k in place", s, 4 * m * (heads + groups) * width + table, lambda: rope(qk, cos, sin, out_mhk=qk)
    yield "rope_qkv_backward", s, 4 * m * total + table, lambda: rope_qkv_backward(*grads, cos, sin, out)
    gate_up, dprod, prod = bf16(m, 2 * f + PAD)[:, : 2 * f], bf16(m, f + PAD)[:, :f], bf16(m, f + PAD)[:, :f]
    wide, size, s = bf16(m, 2 * f + PAD)[:, : 2 * f], 2 * m * f, f"{name} {m}x{f}"
    yield "glu", s, 3 * size, lambda: glu(gate_up, "silu", out_mf=prod)
    yield "glu gelu_tanh", s, 3 * size, lambda: glu(gate_up, "gelu_tanh", out_mf=prod)
    yield "glu_backward", s, 5 * size, lambda: glu_backward(dprod, gate_up, "silu", out_m2f=wide)
    yield (
        "glu_backward product",
        s,
        6 * size,
        lambda: glu_backward(dprod, gate_up, "silu", out_m2f=wide, prod_out_mf=prod),
    )
    yield "glu_fp8", s, 3 * size + size // 2, lambda: glu_fp8(gate_up, "silu")


def other_timings(name: str) -> Iterator[Timing]:
    """The loss, and AdamW on one of the model's matrices many times."""
    d, _, _, _, f, vocab = MODELS[name]
    rows = head.chunk_rows(8192, vocab, "cuda", element_bytes=2)
    raw = bf16(rows, vocab)
    ids, weights = torch.randint(0, vocab, (rows,), device="cuda"), torch.ones(rows, device="cuda")
    size, s = 2 * rows * vocab, f"{name} {rows}x{vocab}"
    yield "cross_entropy", s, 3 * size, lambda: cross_entropy_(raw, ids, weights)
    yield (
        "cross_entropy smooth cap",
        s,
        3 * size,
        lambda: cross_entropy_(raw, ids, weights, label_smoothing=0.1, softcap=30.0),
    )
    yield "cross_entropy loss only", s, size, lambda: cross_entropy_(raw, ids, weights, with_gradient=False)
    count = max(1, (1 << 28) // (d * f))
    masters = [torch.randn(f, d, device="cuda") for _ in range(count)]
    params, grads = [t.bfloat16() for t in masters], [bf16(f, d) for _ in range(count)]
    means, squares = [torch.zeros_like(t) for t in masters], [torch.zeros_like(t) for t in masters]
    scale = torch.ones((), device="cuda")
    options = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 3, "grad_scale": scale}
    yield (
        "adamw",
        f"{name} {count}x({f},{d})",
        count * d * f * 28,
        lambda: adamw_(masters, params, grads, means, squares, **options),
    )


def head_timing(name: str, m: int, trained: bool) -> dict:
    """Loss and all gradients through `linear_cross_entropy`; floor: its products at the rate of the first of them."""
    d, *_, vocab = MODELS[name]
    hidden = (bf16(m, d) / d**0.5).requires_grad_()
    weight = bf16(vocab, d).requires_grad_(trained)
    ids, weights = torch.randint(0, vocab, (m,), device="cuda"), torch.full((m,), 1.0 / m, device="cuda")

    def step() -> None:
        hidden.grad = weight.grad = None
        loss, _ = head.linear_cross_entropy(hidden, weight, target_ids_s=ids, target_weights_s=weights)
        (loss * 0.5).backward()

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ms = timed(step)
    flops = 2 * m * d * vocab * (3 if trained else 2)
    rows = head.chunk_rows(m, vocab, "cuda", element_bytes=2)
    block = hidden.detach()[:rows]
    alone = timed(lambda: block @ weight.detach().t())
    rate = 2 * block.shape[0] * d * vocab / alone / 1e9
    floor = flops / rate / 1e9
    return {
        "op": f"head {'trained' if trained else 'frozen'}", "shape": f"{name} {m}x{d}x{vocab} chunk {rows}", "ms": ms,
        "tflops": flops / ms / 1e9, "product_tflops": rate, "floor_ms": floor, "over_floor": ms / floor,
        "peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30,
    }  # fmt: skip


def timed(call: Callable[[], object]) -> float:
    """Milliseconds, median."""
    import triton

    return float(triton.testing.do_bench(call, warmup=10, rep=60, return_mode="median"))


def host_microseconds(call: Callable[[], object], count: int = 200) -> float:
    """What one call costs on the host, launches queued."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return seconds / count * 1e6


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a 2 GiB copy."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 2 / (timed(lambda: target.copy_(source)) / 1e3)


def attempt(record: dict, work: Callable[[], dict | None]) -> dict:
    """The record with what `work` adds, or with its error."""
    try:
        return {**record, **(work() or {})}
    except Exception as error:  # noqa: BLE001  (a table with holes is better than no table)
        return {**record, "error": f"{type(error).__name__}: {error}"[:600], "trace": traceback.format_exc()[-1500:]}


def run_checks() -> Iterator[dict]:
    """One record a failed check, then the counts."""
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        bench, passed, failed = Bench("cuda", dtype), 0, 0
        start = time.perf_counter()
        for label, check in all_checks(bench, small=dtype == torch.float16):
            record = attempt({"check": label, "dtype": str(dtype)}, check)
            failed += "error" in record
            passed += "error" not in record
            if "error" in record and failed <= 40:
                yield record
        yield {"checks": str(dtype), "passed": passed, "failed": failed, "seconds": time.perf_counter() - start}


def run_variants(tokens: int) -> Iterator[dict]:
    """Other constants, for a wide and a narrow model."""
    bandwidth = copy_bandwidth()
    for name in ("llama-8b", "smollm-135m"):
        yield from variants(name, tokens, bandwidth)


def run_times(tokens: int) -> Iterator[dict]:
    """One record a timing."""
    bandwidth = copy_bandwidth()
    yield {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gb_per_s": bandwidth / 1e9}
    for name in MODELS:
        for source in (lambda name=name: layer_timings(name, tokens), lambda name=name: other_timings(name)):
            yield from _rows(source(), bandwidth)
            torch.cuda.empty_cache()
        for trained in (False, True):
            yield attempt({"op": "head", "shape": name}, lambda n=name, t=trained: head_timing(n, tokens, t))
            torch.cuda.empty_cache()
    small = [(op, shape, call) for op, shape, _, call in layer_timings("smollm-135m", 16)]
    for op, shape, call in small:
        yield attempt({"op": op, "shape": shape}, lambda call=call: {"host_us": host_microseconds(call)})


# (module, constants, values to try, ops to time): how the constants of the kernels were chosen.
CHOICES: list[tuple[str, tuple[str, ...], list[tuple[int, ...]], tuple[str, ...]]] = [
    ("cross_entropy_triton", ("BLOCK", "WARPS"), [(4096, 16), (4096, 8), (2048, 8), (2048, 4), (8192, 16)],
     ("cross_entropy", "cross_entropy smooth cap", "cross_entropy loss only")),
    ("norm_triton", ("TILE", "FORWARD_ELEMENTS", "BACKWARD_ELEMENTS"),
     [(4096, 32, 16), (4096, 16, 8), (2048, 16, 16), (2048, 8, 8), (8192, 32, 32), (1024, 8, 8)],
     ("add_rms_norm", "rms_norm", "rms_norm_again", "rms_norm_backward", "rms_norm_backward dw")),
    ("glu_triton", ("FORWARD_TILE", "BACKWARD_TILE"), [(2048, 1024), (1024, 2048), (4096, 4096)],
     ("glu", "glu gelu_tanh", "glu_backward", "glu_backward product")),
    ("rope_triton", ("TILE",), [(1024,), (2048,), (512,)],
     ("rope q in place", "rope q|k in place", "rope_qkv_backward")),
]  # fmt: skip


def variants(name: str, tokens: int, bandwidth: float) -> Iterator[dict]:
    """The timings again with other constants in the kernels' modules."""
    for module_name, constants, choices, ops in CHOICES:
        module = importlib.import_module(f"luthier.fast.kernels.{module_name}")
        usual = tuple(getattr(module, constant) for constant in constants)
        for choice in choices:
            for constant, value in zip(constants, choice, strict=True):
                setattr(module, constant, value)
            timings = (
                t for source in (layer_timings(name, tokens), other_timings(name)) for t in source if t[0] in ops
            )
            for record in _rows(timings, bandwidth):
                yield {"variant": dict(zip(constants, choice, strict=True)), "usual": choice == usual, **record}
            torch.cuda.empty_cache()
        for constant, value in zip(constants, usual, strict=True):
            setattr(module, constant, value)


def _rows(timings: Iterator[Timing], bandwidth: float) -> Iterator[dict]:
    while True:
        try:
            op, shape, size, call = next(timings)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001
            yield {"op": "set-up", "error": f"{type(error).__name__}: {error}"[:600]}
            return

        def measure(call: Callable[[], object] = call, size: int = size) -> dict:
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            first, ms = time.perf_counter() - start, timed(call)
            floor = size / bandwidth * 1e3
            return {"us": ms * 1e3, "floor_us": floor * 1e3, "gb_per_s": size / ms / 1e6, "over_floor": ms / floor,
                    "over_4.2TB": ms / (size / 4.2e12 * 1e3), "first_call_s": first}  # fmt: skip

        yield attempt({"op": op, "shape": shape}, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-times", action="store_true")
    parser.add_argument("--skip-variants", action="store_true")
    parser.add_argument("--tokens", type=int, default=16384)
    options = parser.parse_args()
    parts = (
        (options.skip_checks, run_checks),
        (options.skip_times, lambda: run_times(options.tokens)),
        (options.skip_variants, lambda: run_variants(options.tokens)),
    )
    for skipped, records in parts:
        for record in () if skipped else records():
            shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
