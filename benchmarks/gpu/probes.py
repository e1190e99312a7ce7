"""What the card does with the products and attention calls of the engine, one JSON line each; dies on none.

    python3 benchmarks/gpu/probes.py [--only NAME ...]

Products of an 8B layer at 16,384 rows (stacked and extended as the engine lays them out), the thin products of
adapters, weight gradients, 8-bit products, and attention over packed documents through each kernel torch has.
Times are medians of CUDA events; rates count 2 M N K operations, bytes count each operand once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

ROWS = 16384
BF16 = torch.bfloat16


def median_ms(fn: Callable[[], Any], repeats: int = 12, warm: int = 3) -> float:
    for _ in range(warm):
        fn()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        fn()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=BF16) * 0.1


def rate(ms: float, m: int, n: int, k: int) -> dict[str, float]:
    return {
        "ms": round(ms, 4), "tflops": round(2 * m * n * k / ms / 1e9),
        "gb_s": round(2 * (m * n + m * k + n * k) / ms / 1e6),
    }  # fmt: skip


def big_products() -> dict[str, Any]:
    found = {}
    for name, n, k in (("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)):
        for pad in (0, 16, 32, 64, 128, 256):
            x, w = rand(ROWS, k + pad), rand(n + pad, k + pad)
            found[f"{name} forward +{pad}"] = rate(median_ms(lambda x=x, w=w, n=n: x @ w[:n].t()), ROWS, n, k)
            g = rand(ROWS, n + pad)
            found[f"{name} input gradient +{pad}"] = rate(median_ms(lambda g=g, w=w, k=k: g @ w[:, :k]), ROWS, n, k)
            del x, w, g
        x, g = rand(ROWS, k), rand(ROWS, n)
        found[f"{name} weight gradient bf16"] = rate(median_ms(lambda x=x, g=g: g.t() @ x), ROWS, n, k)
        total = torch.zeros(n, k, device="cuda")
        fn = lambda x=x, g=g, total=total: torch.addmm(total, g.t(), x, out_dtype=torch.float32, out=total)  # noqa: E731
        found[f"{name} weight gradient += fp32"] = attempt(lambda fn=fn, n=n, k=k: rate(median_ms(fn), ROWS, n, k))
    return found


def attempt(fn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return fn()
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def thin_products() -> dict[str, Any]:
    found = {}
    for width in (4096, 6144, 14336, 28672):
        x = rand(ROWS, width + 64)
        a = rand(64, width)
        body, tail = x[:, :width], x[:, width:]
        dense = tail.contiguous()
        found[f"u {width} into tail"] = rate(
            median_ms(lambda body=body, a=a, tail=tail: torch.mm(body, a.t(), out=tail)), ROWS, 64, width
        )
        found[f"u {width} alpha"] = rate(
            median_ms(lambda body=body, a=a, tail=tail: torch.addmm(tail, body, a.t(), beta=0, alpha=2.0, out=tail)),
            ROWS,
            64,
            width,
        )
        found[f"u {width} r=16"] = rate(median_ms(lambda body=body, a=a: body @ a[:16].t()), ROWS, 16, width)
        found[f"da {width}"] = rate(median_ms(lambda body=body, tail=tail: tail.t() @ body), 64, width, ROWS)
        found[f"db {width}"] = rate(median_ms(lambda body=body, tail=tail: body.t() @ tail), width, 64, ROWS)
        found[f"db {width} contiguous u"] = rate(median_ms(lambda body=body, u=dense: body.t() @ u), width, 64, ROWS)
        y = rand(ROWS, width)
        u, b = rand(ROWS, 16), rand(width, 16)
        found[f"y += u b {width}"] = rate(median_ms(lambda y=y, u=u, b=b: y.addmm_(u, b.t())), ROWS, width, 16)
        del x, y
    return found


def fp8_products() -> dict[str, Any]:
    found = {}
    f8 = torch.float8_e4m3fn
    for name, n, k in (("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)):
        for way, (rows, inner, out) in {"forward": (ROWS, k, n), "input gradient": (ROWS, n, k)}.items():
            x, w = rand(rows, inner).to(f8), rand(out, inner).to(f8)
            sx, sw = torch.ones(rows, 1, device="cuda"), torch.ones(1, out, device="cuda")
            for fast in (True, False):
                fn = lambda x=x, w=w, sx=sx, sw=sw, fast=fast: torch._scaled_mm(  # noqa: E731
                    x, w.t(), scale_a=sx, scale_b=sw, out_dtype=BF16, use_fast_accum=fast
                )
                found[f"{name} {way} fast={fast}"] = attempt(
                    lambda fn=fn, o=out, i=inner: rate(median_ms(fn), ROWS, o, i)
                )
            one = torch.ones((), device="cuda")
            fn = lambda x=x, w=w, one=one: torch._scaled_mm(  # noqa: E731
                x, w.t(), scale_a=one, scale_b=one, out_dtype=BF16, use_fast_accum=True
            )
            found[f"{name} {way} tensorwise"] = attempt(lambda fn=fn, o=out, i=inner: rate(median_ms(fn), ROWS, o, i))
    return found


def documents(longest: int, mean: float, tokens: int = ROWS) -> list[int]:
    chooser, lengths, total = np.random.default_rng(0), [], 0
    while total < tokens:
        n = int(min(max(16, chooser.lognormal(math.log(mean) - 0.18, 0.6)), longest, tokens - total))
        lengths.append(n)
        total += n
    return lengths


def attention(heads: int, groups: int, width: int, longest: int, mean: float) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        lengths = documents(longest, mean)
        bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
        top = max(lengths)
        qkv = rand(ROWS, (heads + 2 * groups) * width)
        q, k, v = (
            part.unflatten(1, (-1, width)) for part in qkv.split((heads * width, groups * width, groups * width), 1)
        )
        grad = rand(ROWS, heads, width)
        flops = 2 * heads * width * sum(n * n for n in lengths)  # causal: half of 4 n^2
        found: dict[str, Any] = {"documents": len(lengths), "longest": top, "forward_gflop": round(flops / 1e9, 1)}

        def flash(parts: tuple[torch.Tensor, ...]) -> dict[str, Any]:
            call = lambda: torch.ops.aten._flash_attention_forward(  # noqa: E731
                *parts, bounds, bounds, top, top, 0.0, True, False, scale=width**-0.5
            )
            out, lse, rng, unused, _ = call()
            back = lambda: torch.ops.aten._flash_attention_backward(  # noqa: E731
                grad, *parts, out, lse, bounds, bounds, top, top, 0.0, True, rng, unused, scale=width**-0.5
            )
            return {"forward_ms": round(median_ms(call), 4), "backward_ms": round(median_ms(back), 4), "out": out}

        strided = flash((q, k, v))
        reference = strided.pop("out")
        found["flash, views of qkv"] = strided
        dense = flash((q.contiguous(), k.contiguous(), v.contiguous()))
        dense.pop("out")
        found["flash, contiguous"] = dense

        def cudnn(parts: tuple[torch.Tensor, ...], most: int) -> dict[str, Any]:
            call = lambda: torch.ops.aten._cudnn_attention_forward(  # noqa: E731
                *parts, None, bounds, bounds, most, most, True, 0.0, True, False, scale=width**-0.5
            )
            began = time.perf_counter()
            out, lse, _, _, _, _, seed, offset, _ = call()
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            error = float((out.float() - reference.float()).norm() / reference.float().norm())
            answer = {"first_s": round(first, 3), "forward_ms": round(median_ms(call), 4), "error": error}
            bias = torch.empty(0, device="cuda", dtype=BF16)
            for label, extra in (("none", None), ("empty", bias)):
                back = lambda extra=extra: torch.ops.aten._cudnn_attention_backward(  # noqa: E731
                    grad,
                    *parts,
                    out,
                    lse,
                    seed,
                    offset,
                    extra,
                    bounds,
                    bounds,
                    most,
                    most,
                    0.0,
                    True,
                    scale=width**-0.5,
                )
                answer[f"backward bias {label}"] = attempt(lambda back=back: {"ms": round(median_ms(back), 4)})
            return answer

        full = tuple(
            t.contiguous()
            for t in (q, k.repeat_interleave(heads // groups, 1), v.repeat_interleave(heads // groups, 1))
        )
        found["cudnn, grouped views"] = attempt(lambda: cudnn((q, k, v), top))
        found["cudnn, grouped contiguous"] = attempt(
            lambda: cudnn((q.contiguous(), k.contiguous(), v.contiguous()), top)
        )
        found["cudnn, repeated heads"] = attempt(lambda: cudnn(full, top))
        return found

    return run


def dense_attention() -> dict[str, Any]:
    """Full rows for comparison: 16 documents of 1,024 tokens as a rectangle."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    found = {}
    q, k, v = (torch.randn(16, h, 1024, 128, device="cuda", dtype=BF16, requires_grad=True) for h in (32, 8, 8))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def run(backend: SDPBackend = backend) -> dict[str, Any]:
            with sdpa_kernel(backend):
                fwd = lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
                out = fwd()
                grad = torch.randn_like(out)
                both = lambda: torch.autograd.grad(fwd(), (q, k, v), grad)  # noqa: E731
                return {"forward_ms": round(median_ms(fwd), 4), "both_ms": round(median_ms(both), 4)}

        found[backend.name] = attempt(run)
    return found


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "attention 32/8 x 128, 300": attention(32, 8, 128, 1024, 300),
    "attention 32/8 x 128, up to 4096": attention(32, 8, 128, 4096, 1200),
    "attention 9/3 x 64, 300": attention(9, 3, 64, 1024, 300),
    "attention 14/2 x 64, 300": attention(14, 2, 64, 1024, 300),
    "dense attention 16 x 1024": dense_attention,
    "thin products": thin_products,
    "big products": big_products,
    "fp8 products": fp8_products,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    chosen = parser.parse_args().only
    for name, probe in PROBES.items():
        if chosen and not any(word in name for word in chosen):
            continue
        began = time.perf_counter()
        found = attempt(probe)
        torch.cuda.empty_cache()
        print(json.dumps({"probe": name, "seconds": round(time.perf_counter() - began, 1), **found}), flush=True)


if __name__ == "__main__":
    main()
