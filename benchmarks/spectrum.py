"""Singular values for a Spectrum scan: ours (`luthier/spectrum/singular.py`) against `torch.linalg.svdvals`.

    python benchmarks/spectrum.py                                  # SmolLM2-135M, every matrix, on this CPU
    python benchmarks/spectrum.py --device cuda --shapes llama8b   # the shapes of Llama-3.1-8B, random, on a GPU

Each matrix goes through every variant once; the first matrix of a shape once before, untimed.

    ours      the scan's own function: Gram matrix in float64, eigenvalues; an SVD where its bound is too wide
    svdvals   `torch.linalg.svdvals` in float32, as the original script calls it
    host      (cuda) ours, with the eigenvalues on the CPU

Errors are against `svdvals` in float64 on the same numbers (the first `--truth` matrices of a shape; 0: all):
`error_upper`: largest relative error among singular values from the median up; `error_all`: largest absolute error of
any, over S_1; `error_compat`, `error_calibrated`: relative error of the scores. `--shapes`: times of the whole model
are `count` x the mean time of a matrix of its shape, marked `extrapolated`. `cpu_seconds`: of this process, all
threads; on a machine that others use it says more than `seconds`.

One JSON line a shape and one for the total go to `--out` (default: spectrum_WHAT_DEVICE.jsonl in
$OUT, else in benchmarks/results).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.gpu.machine import machine  # noqa: E402
from luthier.spectrum.scores import calibrated, compat  # noqa: E402
from luthier.spectrum.singular import gram_values, singular_values  # noqa: E402

SHAPES = {
    "llama8b": {
        "q_proj": (4096, 4096, 32), "k_proj": (1024, 4096, 32), "v_proj": (1024, 4096, 32),
        "o_proj": (4096, 4096, 32), "gate_proj": (14336, 4096, 32), "up_proj": (14336, 4096, 32),
        "down_proj": (4096, 14336, 32),
    },
    "tiny": {"q_proj": (64, 64, 4), "k_proj": (32, 64, 4), "down_proj": (64, 192, 4)},
}  # fmt: skip
"""(rows, columns, how many the model has) by module."""


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="folder or name, where no --shapes are given")
    parser.add_argument("--shapes", choices=sorted(SHAPES), help="random bf16 matrices of these shapes instead")
    parser.add_argument("--each", type=int, default=2, help="random matrices of a shape")
    parser.add_argument("--truth", type=int, default=0, help="matrices of a shape compared with float64; 0: all")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--budget", type=float, default=500.0, help="begin no matrix after this many seconds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.out is None:
        name = f"spectrum_{options.shapes or 'smollm2'}_{options.device}.jsonl"
        options.out = Path(os.environ.get("OUT") or Path(__file__).parent / "results") / name
    return options


def matrices(options: argparse.Namespace) -> Iterator[tuple[tuple[int, int], int, torch.Tensor]]:
    """(shape, how many of it the model has, matrix on the CPU in its stored type), shape by shape."""
    if options.shapes:
        alike: dict[tuple[int, int], int] = {}
        for n, m, count in SHAPES[options.shapes].values():
            alike[n, m] = alike.get((n, m), 0) + count
        for (n, m), count in alike.items():
            for seed in range(options.each):
                yield (n, m), count, random_matrix(n, m, seed, options.device)
        return
    from luthier.model.locate import locate_model
    from luthier.model.weights import check_weight_files
    from luthier.spectrum.tensors import list_tensors, read_tensor

    stored = [one for one in list_tensors(check_weight_files(locate_model(options.model)))[0] if len(one.shape) == 2]
    for shape in dict.fromkeys(one.shape for one in stored):
        same = [one for one in stored if one.shape == shape]
        for one in same:
            yield (shape[0], shape[1]), len(same), read_tensor(one)


def random_matrix(n: int, m: int, seed: int, device: str) -> torch.Tensor:
    """Noise of 0.02 and a signal of rank min(n, m) / 16 with decaying strengths, rounded to bf16."""
    generator = torch.Generator(device).manual_seed(seed)
    rank = min(n, m) // 16
    left = torch.randn(n, rank, generator=generator, device=device)
    right = torch.randn(rank, m, generator=generator, device=device)
    strengths = 0.02 * torch.logspace(0, -1.5, rank, device=device)
    noise = torch.randn(n, m, generator=generator, device=device) * 0.02
    return (noise + (left * strengths) @ right).bfloat16()


def host_values(stack: torch.Tensor) -> np.ndarray:
    """The Gram matrix on the device, its eigenvalues on the host."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    double = wide.to(torch.float64)
    gram = (double @ double.mT)[0].cpu()
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt().numpy()


def variants(device: str) -> dict[str, Callable[[torch.Tensor], np.ndarray]]:
    """By name: (1, n, m) on the device -> singular values on the host."""
    found: dict[str, Callable[[torch.Tensor], np.ndarray]] = {
        "ours": lambda stack: singular_values(stack)[0][0],
        "svdvals": lambda stack: torch.linalg.svdvals(stack[0].float()).cpu().numpy().astype(np.float64),
    }
    if device == "cuda":
        found["host"] = host_values
    return found


def timed(function: Callable[[torch.Tensor], np.ndarray], stack: torch.Tensor) -> tuple[float, float, np.ndarray]:
    """(seconds until the values are on the host, CPU seconds of this process, values)."""
    if stack.is_cuda:
        torch.cuda.synchronize()
    start, spent = time.perf_counter(), time.process_time()
    values = function(stack)
    return time.perf_counter() - start, time.process_time() - spent, values


def errors(values: np.ndarray, exact: np.ndarray, n: int, m: int) -> dict[str, float]:
    """See the head of this file."""
    upper = len(exact) // 2 + 1
    ours, true = calibrated([values], n, m), calibrated([exact], n, m)
    assert ours is not None and true is not None
    return {
        "error_upper": float(np.abs(values[:upper] / exact[:upper] - 1).max()),
        "error_all": float(np.abs(values - exact).max() / exact[0]),
        "error_compat": abs(compat(values, n, m) / compat(exact, n, m) - 1),
        "error_calibrated": abs(ours.score / true.score - 1) if true.score else abs(ours.score),
    }


def main() -> int:
    """All shapes, then the total."""
    options = parse()
    torch.manual_seed(0)
    facts = {"threads": torch.get_num_threads(), **machine(options.device)}
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    started, left_out = time.time(), 0
    for shape, count, matrix in matrices(options):
        if time.time() - started > options.budget:
            left_out += 1
            continue
        stack = matrix[None].to(options.device)
        n, m = shape
        if shape not in rows:
            rows[shape] = {"shape": list(shape), "count": count, "measured": 0, "svd_fallbacks": 0,
                           "bound_upper": 0.0, "compared": 0}  # fmt: skip
            for function in variants(options.device).values():
                timed(function, stack)
        row = rows[shape]
        row["measured"] += 1
        row["svd_fallbacks"] += singular_values(stack)[1] == ["svd"]
        values, bounds = gram_values(stack)
        upper = min(n, m) // 2 + 1
        row["bound_upper"] = max(row["bound_upper"], float((bounds[0][:upper] / values[0][:upper]).max()))
        compare = not options.truth or row["compared"] < options.truth
        exact = torch.linalg.svdvals(stack[0].double()).cpu().numpy() if compare else None
        row["compared"] += compare
        for name, function in variants(options.device).items():
            seconds, cpu_seconds, values_ = timed(function, stack)
            mine = row.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
            mine["seconds"] += seconds
            mine["cpu_seconds"] += cpu_seconds
            if exact is not None:
                for key, value in errors(values_, exact, n, m).items():
                    mine[key] = max(mine.get(key, 0.0), value)
    return report(list(rows.values()), options, facts, left_out)


def report(rows: list[dict[str, Any]], options: argparse.Namespace, facts: dict[str, Any], left_out: int) -> int:
    """Print a line a shape, and write all as JSON lines."""
    names = list(variants(options.device))
    extrapolated = any(row["measured"] < row["count"] for row in rows)
    total: dict[str, Any] = {"total": True, "extrapolated": extrapolated, "not_reached": left_out}
    for name in names:
        for key in ("seconds", "cpu_seconds"):
            total[f"{name}_{key}"] = sum(row[name][key] / row["measured"] * row["count"] for row in rows)
    lines = [{"model": options.shapes or options.model, **row, **facts} for row in (*rows, total)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for row in rows:
        print(f"{row['shape']} x {row['count']}, {row['measured']} measured, {row['svd_fallbacks']} needed an SVD")
        for name in names:
            wall, cpu = (1e3 * row[name][key] / row["measured"] for key in ("seconds", "cpu_seconds"))
            wrong = "  ".join(f"{key} {value:.1e}" for key, value in row[name].items() if key.startswith("error"))
            print(f"    {name:8} {wall:.1f} ms, {cpu:.1f} ms of CPU  {wrong}")
        print(f"    bound on ours, from the median up: {row['bound_upper']:.1e}")
    word = "extrapolated from the measured matrices" if extrapolated else "all matrices measured"
    for name in names:
        wall, cpu = (total[f"{name}_{key}"] for key in ("seconds", "cpu_seconds"))
        print(f"whole model: {name} {wall:.1f} s, {cpu:.1f} s of CPU ({word})")
    if left_out:
        print(f"{left_out} matrices were not reached within the budget")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
