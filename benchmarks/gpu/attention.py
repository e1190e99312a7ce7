"""Packed attention on this GPU: checked against fp64 beside FlashAttention-2, and timed against it for each candidate.

    python3 benchmarks/gpu/attention.py [--seconds 95] [--processes 14] > attention.jsonl

Worker processes check the tables' kernels (`check` lines), and compile and check every candidate (`candidate` lines,
those that fail only); then this process times the candidates (`time` lines, best first in each case). The last lines
are a summary to choose the tables of `luthier/fast/kernels/attention_schedule.py` from. Nothing that fails ends a run.

TFLOP/s count the products of pairs that a query sees: 4 K flops a pair and head forward, 10 K backward (dq: 6 K of
work is done by its kernel, dk and dv: 8 K, for the 10 K that are counted over both).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from benchmarks.gpu.attention_cases import (
    CANDIDATES,
    CASES,
    CHECKS,
    KERNELS,
    Batch,
    Case,
    Shape,
    error,
    named_errors,
    short,
    some_lengths,
)
from luthier.fast.kernels.attention_schedule import Blocks, blocks_for
from luthier.fast.kernels.rope import rope_qkv_backward


def check(job: tuple[Any, ...]) -> dict[str, Any]:
    """The table's kernels against fp64, beside FlashAttention-2 and its separate rotation."""
    from luthier.fast.kernels import attention_triton as ours

    heads, groups, width, lengths, window, dtype, rotated = job
    batch = Batch((heads, groups, width), lengths, getattr(torch, dtype))
    exact = batch.exact(window, rotated)
    tables = (batch.cos, batch.sin) if rotated else None
    runs = []
    for _ in range(2):
        out, lse = ours.forward(batch.q, batch.k, batch.v, batch.schedule, batch.scale, window, None)
        ours.backward(batch.dout, batch.q, batch.k, batch.v, out, lse, batch.schedule, batch.scale, window, tables,
                      batch.dqkv)  # fmt: skip
        runs.append((out, batch.dqkv.clone()))
    mine = named_errors(batch, out, batch.dqkv, exact) | {"lse": error(lse, exact[1])}
    found = batch.flash(window)
    grads = batch.flash_backward(found, window)
    theirs_dqkv = torch.cat([grad.flatten(1) for grad in grads], dim=1)
    if rotated:
        rope_qkv_backward(*grads, batch.cos, batch.sin, theirs_dqkv)
    theirs = named_errors(batch, found[0], theirs_dqkv, exact)
    wrong = [name for name in theirs if not mine[name] <= 1.1 * theirs[name] + 1e-4]
    wrong += [] if mine["lse"] <= 1e-5 else ["lse"]
    wrong += [] if all(torch.equal(*pair) for pair in zip(*runs, strict=True)) else ["two runs differ"]
    wrong += [] if (batch.room[:, batch.total :] == 7.0).all() else ["wrote over the margin"]
    return {
        "name": f"{heads}/{groups}x{width} {dtype} window {window} longest {max(lengths)} rotated {rotated}",
        "wrong": wrong, "ours": mine, "flash": theirs,
    }  # fmt: skip


def launches(batch: Batch) -> tuple[dict[str, Callable[[Blocks], None]], tuple[Tensor, Tensor]]:
    """One kernel at a time with given blocks; forward's results for the others come from the table's blocks."""
    from luthier.fast.kernels import attention_triton as ours

    qkv, tables = (batch.q, batch.k, batch.v), (batch.cos, batch.sin)
    found = batch.flash()
    out, lse = found[0], found[1]
    if lse.shape != (batch.heads, batch.tokens):  # padded, in some versions of torch
        lse = ours.forward(*qkv, batch.schedule, batch.scale, None, None)[1]
    delta = (batch.dout.float() * out.float()).sum(-1).t().contiguous()
    place = torch.empty_like(out)
    schedule, scale = batch.schedule, batch.scale

    def forward(blocks: Blocks) -> None:
        ours.forward(*qkv, schedule, scale, None, place, (blocks,) * 3)

    def dq(blocks: Blocks) -> None:
        ours.backward_dq(batch.dout, *qkv, out, lse, delta, schedule, scale, None, tables, batch.dqkv, (blocks,) * 3)

    def dkdv(blocks: Blocks) -> None:
        ours.backward_dkdv(batch.dout, *qkv, lse, delta, schedule, scale, None, tables, batch.dqkv, (blocks,) * 3)

    return {"forward": forward, "dq": dq, "dkdv": dkdv}, (place, batch.dqkv)


def candidate(job: tuple[str, Shape, Blocks]) -> dict[str, Any]:
    """Compile one candidate (into the cache on disk, for the process that times it) and check it on a small batch."""
    kernel, shape, blocks = job
    batch = Batch(shape, (200, 1, 65, 130))
    exact = batch.exact(None, True)
    run, (out, grads) = launches(batch)
    run[kernel](blocks)
    errors = named_errors(batch, out, grads, exact)
    names = {"forward": ["out"], "dq": ["dq"], "dkdv": ["dk", "dv"]}[kernel]
    return {"job": job, "wrong": [f"{name} {errors[name]:.1e}" for name in names if not errors[name] < 1e-2]}


def work(job: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    kind, what = job
    try:
        return kind, {"check": check, "candidate": candidate}[kind](what)
    except Exception:  # noqa: BLE001
        return kind, {"name": str(what), "job": what, "wrong": [traceback.format_exc(limit=-2)[-400:]]}


def show(**line: Any) -> None:
    print(json.dumps(line, default=str), flush=True)


def milliseconds(call: Callable[[], object]) -> float:
    """Least of three means of enough calls for about 6 ms each."""

    def mean(times: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times

    call()
    times = max(3, min(50, int(6 / max(mean(2), 1e-3))))
    return min(mean(times) for _ in range(3))


def time_case(case: Case, failed: set[Any], deadline: float) -> str:
    """Time lines of a case; returns its part of the summary."""
    lengths = some_lengths(case)
    batch = Batch(case.shape, lengths)
    pairs = sum(n * (n + 1) // 2 for n in lengths) * batch.heads * batch.width
    found = batch.flash()
    grads = batch.flash_backward(found)
    base = {
        "forward": milliseconds(batch.flash),
        "backward": milliseconds(lambda: batch.flash_backward(found)),
        "rope": milliseconds(lambda: rope_qkv_backward(*grads, batch.cos, batch.sin, batch.dqkv)),
    }
    run, _ = launches(batch)
    best: dict[str, list[tuple[float, Blocks]]] = {}
    table = dict(zip(KERNELS, blocks_for(batch.width, max(lengths)), strict=True))
    for kernel in KERNELS:
        timed = []
        for blocks in dict.fromkeys((table[kernel], *CANDIDATES[kernel, batch.width])):
            if (kernel, case.shape, blocks) in failed or time.monotonic() > deadline:
                continue
            try:
                timed.append((milliseconds(lambda k=kernel, at=blocks: run[k](at)), blocks))
            except Exception as err:  # noqa: BLE001
                show(case=case.name, kernel=kernel, blocks=blocks, failed=str(err)[-200:])
        best[kernel] = sorted(timed)
        flops = {"forward": 4, "dq": 6, "dkdv": 8}[kernel] * pairs
        for ms, blocks in best[kernel]:
            show(time=case.name, kernel=kernel, ms=round(ms, 4), tflops=round(flops / ms / 1e9), blocks=tuple(blocks),
                 table=blocks == table[kernel])  # fmt: skip
    begin = time.perf_counter()
    for _ in range(20):
        run["dq"](table["dq"])
    host = (time.perf_counter() - begin) / 20 * 1e6
    torch.cuda.synchronize()
    return summary(case, lengths, base, best, table, pairs, host)


def summary(
    case: Case, lengths: tuple[int, ...], base: dict[str, float], best: dict[str, list[tuple[float, Blocks]]],
    table: dict[str, Blocks], pairs: int, host: float,
) -> str:  # fmt: skip
    def told(kernel: str) -> str:
        first = ", ".join(f"{ms:.3f} {short(at)}" for ms, at in best[kernel][:3]) or "none ran"
        now = [f"{ms:.3f}" for ms, at in best[kernel] if at == table[kernel]]
        return f"  {kernel}: {first}; table {short(table[kernel])} {now[0] if now else 'failed'}"

    flash = base["backward"] + base["rope"]
    rate = 4 * pairs / base["forward"] / 1e9
    lines = [f"{case.name} T {case.tokens} ({len(lengths)} docs, longest {max(lengths)}): FA2 forward "
             f"{base['forward']:.3f} ({rate:.0f} TF) backward {base['backward']:.3f} + rope {base['rope']:.3f}; "
             f"launch {host:.0f} us"]  # fmt: skip
    if all(best.values()):
        ours = best["dq"][0][0] + best["dkdv"][0][0]
        lines[0] += f"; best: forward x{base['forward'] / best['forward'][0][0]:.2f} backward x{flash / ours:.2f}"
    return "\n".join(lines + [told(kernel) for kernel in KERNELS])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=95)
    parser.add_argument("--processes", type=int, default=14)
    args = parser.parse_args()
    began = time.monotonic()
    jobs: list[tuple[str, Any]] = [("check", each) for each in CHECKS]
    for case in CASES:
        table = dict(zip(KERNELS, blocks_for(case.shape[2], max(some_lengths(case))), strict=True))
        for kernel in KERNELS:
            wanted = (table[kernel], *CANDIDATES[kernel, case.shape[2]])
            jobs += [("candidate", (kernel, case.shape, blocks)) for blocks in wanted]
    jobs = list(dict.fromkeys(jobs))
    failed = {what for kind, what in jobs if kind == "candidate"}
    told: list[str] = []
    pool = multiprocessing.get_context("spawn").Pool(args.processes)
    results = pool.imap_unordered(work, jobs)
    for _ in jobs:
        try:
            kind, line = results.next(timeout=max(0.1, began + 0.65 * args.seconds - time.monotonic()))
        except multiprocessing.TimeoutError:
            told.append("not every check and candidate was done in time")
            break
        if kind == "check" or line["wrong"]:
            show(**{kind: line["name"] if kind == "check" else line["job"]}, **line)
        if line["wrong"]:
            what = line["name"] if kind == "check" else f"{line['job'][0]} {line['job'][1]} {short(line['job'][2])}"
            told.append(f"FAILED {kind} {what}: {str(line['wrong'])[-160:]}"[:260])
        elif kind == "candidate":
            failed.discard(tuple(line["job"]))
    pool.terminate()
    show(prepared_s=round(time.monotonic() - began, 1), device=torch.cuda.get_device_name(), torch=torch.__version__)
    parts = []
    for case in CASES:
        try:
            parts.append(time_case(case, failed, began + args.seconds - 3))
        except Exception:  # noqa: BLE001
            parts.append(f"{case.name}: {traceback.format_exc(limit=-1)[-200:]}")
    print("\nSUMMARY (ms; blocks rows.keys.warps.stages, n: heads not packed)")
    print("\n".join([*parts, f"{len(told)} failures", *told[:6]])[:3400])


if __name__ == "__main__":
    main()
