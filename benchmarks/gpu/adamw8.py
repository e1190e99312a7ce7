"""8-bit AdamW on this GPU: against its plain definition, and timed beside other optimizers. On any device: its map.

    python3 benchmarks/gpu/adamw8.py [--skip-checks] [--skip-times] [--most-gib 60] > adamw8.jsonl
    python3 benchmarks/gpu/adamw8.py --maps          # CPU, minutes: the numbers in luthier/fast/kernels/maps8.py

Needs torch and triton; bitsandbytes is timed where it is installed. JSON lines; a failure is a line and never ends the
run. Bytes are what must move: 2 gradient + 8 master + 4 moments + 2 parameter for ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder: bitsandbytes imports a `kernels`

import torch
from torch import Tensor

from luthier.fast.kernels import maps8
from luthier.fast.kernels.adamw import adamw_
from luthier.fast.kernels.adamw8 import adamw8_, adamw8_reference_, moments8

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
KEYS = ("state1", "absmax1", "state2", "absmax2")
SECONDS, START = 40.0, time.monotonic()
Round = Callable[[Tensor], Tensor]

# -- the map: what rounding the moments does to the update


def closed_form() -> tuple[Round, Round]:
    return (
        lambda x: maps8.decode_signed(*maps8.encode_signed(x)),
        lambda x: maps8.decode_unsigned(*maps8.encode_unsigned(x)),
    )


def dynamic_map(signed: Tensor, unsigned: Tensor, *, keeps_positive: bool = False) -> tuple[Round, Round]:
    """bitsandbytes' tables, nearest entry; `keeps_positive`: but never 0 for what is positive."""

    def nearest(table: Tensor, x: Tensor, lowest: int) -> Tensor:
        rows = x.view(-1, maps8.BLOCK)
        absmax = rows.abs().amax(dim=1, keepdim=True)
        code = torch.searchsorted((table[1:] + table[:-1]) / 2, rows / absmax.clamp_min(1e-38))
        code = torch.where(rows > 0, code.clamp_min(lowest), code) if lowest else code
        return (table[code] * absmax).view(-1)

    return (lambda x: nearest(signed, x, 0)), (lambda x: nearest(unsigned, x, int(keeps_positive)))


def gradients(kind: str, size: int, decades: float, steps: int) -> Iterator[Tensor]:
    """Of size 1 in the median; their squares' scales are log-normal, four standard deviations being `decades`."""
    g = torch.Generator().manual_seed(0)
    scale = 10 ** (decades / 8 * torch.randn(size, generator=g, dtype=torch.float64))
    drift = 0.3 * torch.randn(size, generator=g, dtype=torch.float64)
    for _ in range(steps):
        grad = scale * (drift + torch.randn(size, generator=g, dtype=torch.float64))
        if kind == "sparse":  # one in twenty
            grad = grad * (torch.rand(size, generator=g) < 0.05)
        if kind == "embedding":  # rows of 576, of which one in fifty occurs
            grad = grad * (torch.rand(-(-size // 576), generator=g) < 0.02).repeat_interleave(576)[:size]
        yield grad


def update_error(
    maps: tuple[Round, Round], *, decades: float, steps: int, blocks: int, kind: str = "dense", beta2: float = 0.999
) -> dict[str, float]:
    """Of u = m / (sqrt(v) + eps): rms error over the rms of fp64's, and largest over the largest of fp64's."""
    size, beta1, eps = 256 * blocks, 0.9, 1e-3
    exact, rounded = [torch.zeros(size, dtype=torch.float64)] * 2, [torch.zeros(size)] * 2
    off, whole, largest, largest_exact = 0.0, 0.0, 0.0, 0.0
    for step, grad in enumerate(gradients(kind, size, decades, steps), start=1):
        updates = []
        for mean, square in (exact, rounded):
            g = grad.to(mean.dtype)
            mean, square = beta1 * mean + (1 - beta1) * g, beta2 * square + (1 - beta2) * g * g
            updates.append((mean, square, mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + eps)))
        exact = list(updates[0][:2])
        rounded = [to(moment) for to, moment in zip(maps, updates[1][:2], strict=True)]
        want, got = updates[0][2], updates[1][2].double()
        off, whole = off + float((got - want).square().sum()), whole + float(want.square().sum())
        largest, largest_exact = max(largest, float(got.abs().max())), max(largest_exact, float(want.abs().max()))
    return {"rms": (off / whole) ** 0.5, "largest": largest / largest_exact}


def compare_maps() -> None:
    import bitsandbytes.functional as functional

    tables = functional.create_dynamic_map(True), functional.create_dynamic_map(False)
    every = {
        "closed form": closed_form(), "dynamic": dynamic_map(*tables),
        "dynamic, v > 0": dynamic_map(*tables, keeps_positive=True),
    }  # fmt: skip
    for kind, decades in (*(("dense", d) for d in (2, 4, 6, 8)), ("sparse", 4), ("embedding", 4)):
        for name, maps in every.items():
            say(map=name, gradients=kind, decades=decades, **update_error(maps, decades=decades, steps=300, blocks=32,
                                                                        kind=kind))  # fmt: skip


# -- the kernel against its definition


def compare(
    kernel: Callable[..., None], definition: Callable[..., None], device: str, param_dtype: torch.dtype | None,
    grad_dtype: torch.dtype, scale: float | Tensor, *, shapes: Sequence[tuple[int, ...]], steps: int = 3,
) -> dict[str, float]:  # fmt: skip
    """Largest differences of single steps from equal states. `param_dtype` None: masters are their own parameters."""
    g = torch.Generator().manual_seed(0)
    masters = [torch.randn(shape, generator=g).to(device) for shape in shapes]
    margins: list[Tensor] = []
    params = masters if param_dtype is None else [_window(master, param_dtype, margins) for master in masters]
    kinds = [[moments8(master)[key] for master in masters] for key in KEYS]
    worst = dict.fromkeys(
        ("codes_differ", "largest_code_step", "scales", "master", "param_ulp", "margins", "lost"), 0.0
    )

    def note(key: str, value: Tensor | float) -> None:
        worst[key] = max(worst[key], float(value))

    for step in range(1, steps + 1):
        grads = [(torch.randn(shape, generator=g) ** 3).to(device, grad_dtype) for shape in shapes]
        for grad in grads:
            grad.view(-1)[:2] = torch.tensor([0.0, 1e-13])  # v of one is 26 decades below others', of one is zero
        plain, plain_kinds = [t.clone() for t in masters], [[t.clone() for t in kind] for kind in kinds]
        kernel(masters, params, grads, *kinds, **OPTIONS, step=step, grad_scale=scale)
        definition(plain, plain, grads, *plain_kinds, **OPTIONS, step=step, grad_scale=scale)
        for master, want, param in zip(masters, plain, params, strict=True):
            note("master", ((master - want).abs() / (want.abs() + OPTIONS["lr"])).max())
            note("param_ulp", _ulps(param, master.to(param.dtype)))
        for key, got, expected in zip(KEYS, kinds, plain_kinds, strict=True):
            for one, other in zip(got, expected, strict=True):
                if key.startswith("state"):
                    distance = (one.int() - other.int()).abs()
                    if (
                        key == "state1"
                    ):  # what cancels to under 1e-6 of its block's largest has codes of rounding errors
                        near = ((one.int() - 128).abs() <= 4) & ((other.int() - 128).abs() <= 4)
                        distance = torch.where(near, distance.clamp_max(1), distance)
                    note("codes_differ", (distance > 0).float().mean())
                    note("largest_code_step", distance.max())
                else:
                    note("scales", ((one - other).abs() / other).max())
            if key == "state2":
                for codes, grad in zip(got, grads, strict=True):
                    note("lost", bool(((codes == 0) != (grad == 0)).view(-1)[:2].any()))
    note("margins", sum(int((margin != 7).sum()) for margin in margins))
    return worst


def _window(master: Tensor, dtype: torch.dtype, margins: list[Tensor]) -> Tensor:
    """A matrix lives in a wider one, filled with 7."""
    if master.ndim != 2:
        return torch.empty_like(master, dtype=dtype)
    wide = torch.full((master.shape[0], master.shape[1] + 5), 7.0, dtype=dtype, device=master.device)
    margins.append(wide[:, master.shape[1] :])
    return wide[:, : master.shape[1]]


def _ulps(one: Tensor, other: Tensor) -> Tensor:
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return (one.contiguous().view(kind).long() - other.contiguous().view(kind).long()).abs().max()


def check() -> None:
    shapes = ((4096, 1024), (1000, 1001), (8208,), (5, 4096))
    for param_dtype in (None, torch.float32, torch.bfloat16, torch.float16):
        for grad_dtype in (torch.float32, torch.bfloat16, torch.float16):
            for scale in (0.5, torch.tensor(0.5, device="cuda")):
                found = compare(adamw8_, adamw8_reference_, "cuda", param_dtype, grad_dtype, scale, shapes=shapes)
                good = (
                    found["codes_differ"] < 1e-3 and found["largest_code_step"] <= 1 and found["master"] < 2e-6
                    and found["scales"] < 1e-6 and found["param_ulp"] == found["margins"] == found["lost"] == 0
                )  # fmt: skip
                say(check="adamw8", passed=good, param=str(param_dtype), grad=str(grad_dtype),
                    scale="device" if isinstance(scale, Tensor) else "host", **found)  # fmt: skip


# -- times


def timed(call: Callable[[], object]) -> float:
    """Median milliseconds of five calls, after one."""
    call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(6)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return sorted(one.elapsed_time(other) for one, other in pairwise(marks))[2]


def record(name: str, bytes_each: int, masters: Sequence[Tensor], call: Callable[[], object]) -> None:
    if time.monotonic() - START > SECONDS * 0.7:
        say(timing=name, skipped=f"{SECONDS * 0.7:.0f} seconds are over")
        return
    try:
        ms, weights = timed(call), sum(master.numel() for master in masters)
    except Exception as error:  # noqa: BLE001
        say(timing=name, failed=repr(error))
        return
    say(timing=name, weights=weights, ms=round(ms, 3), gb_per_s=round(weights * bytes_each / ms / 1e6, 1),
        ms_of_8_billion=round(ms * 8.03e9 / weights, 1))  # fmt: skip


def model(count: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Masters, parameters and gradients of `count` matrices of an 8B model, and norms."""
    shapes = [(4096, 14336)] * count + [(4096,)] * 2 * count
    masters = [torch.randn(shape, device="cuda") for shape in shapes]
    return masters, [master.bfloat16() for master in masters], [master.bfloat16() for master in masters]


def time_ours(count: int) -> None:
    from luthier.fast.kernels import adamw8_triton

    lists, options = model(count), {**OPTIONS, "lr": 1e-5}
    kinds = [[moments8(master)[key] for master in lists[0]] for key in KEYS]
    scale = torch.ones((), device="cuda")
    usual = adamw8_triton._ROWS, adamw8_triton._WARPS
    for rows, warps in (usual, (1, 1), (2, 2), (8, 8), (8, 4), (16, 4), (4, 2)):
        adamw8_triton._ROWS, adamw8_triton._WARPS = rows, warps
        record(f"adamw8, {rows} rows {warps} warps", 16, lists[0],
               lambda: adamw8_(*lists, *kinds, **options, step=9, grad_scale=scale))  # fmt: skip
    adamw8_triton._ROWS, adamw8_triton._WARPS = usual


def time_fp32_moments(count: int) -> None:
    lists = model(count)
    moments = [[torch.zeros_like(master) for master in lists[0]] for _ in range(2)]
    record("adamw, fp32 moments", 28, lists[0], lambda: adamw_(*lists, *moments, **OPTIONS, step=9))


def time_others(count: int) -> None:
    tensors = [torch.nn.Parameter(master) for master in model(count)[0]]
    for tensor in tensors:
        tensor.grad = tensor.detach() * 0.5
    record("torch fused AdamW, fp32 gradients", 28, tensors, torch.optim.AdamW(tensors, **OPTIONS, fused=True).step)
    if importlib.util.find_spec("bitsandbytes") is None:
        say(timing="bitsandbytes AdamW8bit", skipped="not installed")
        return
    import bitsandbytes

    theirs = bitsandbytes.optim.AdamW8bit(tensors, **OPTIONS)
    record("bitsandbytes AdamW8bit, fp32 gradients", 16, tensors, theirs.step)


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--maps", "--skip-checks", "--skip-times"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--most-gib", type=float, default=60.0)
    given = parser.parse_args()
    if given.maps:
        torch.set_num_threads(1)
        compare_maps()
        return
    if not torch.cuda.is_available():
        say(skipped="no CUDA device")
        return
    say(device=torch.cuda.get_device_name(), torch=torch.__version__)
    free = min(torch.cuda.mem_get_info()[0] / 2**30 * 0.8, given.most_gib)
    # 10 bytes a weight for ours; a quarter as many weights with 16.
    count = max(1, min(64, int(free * 2**30 / (10 * 4096 * 14336))))
    checks, times = [check], [lambda: time_ours(count), lambda: time_fp32_moments(-(-count // 4)),
                              lambda: time_others(-(-count // 4))]  # fmt: skip
    for part in [*([] if given.skip_checks else checks), *([] if given.skip_times else times)]:
        try:
            part()
        except Exception:  # noqa: BLE001
            say(failed=traceback.format_exc()[-2000:])
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
