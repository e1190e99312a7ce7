"""Attention of answers that share their prompt, on this GPU: checked against fp64, timed against answers with copies.

    python3 benchmarks/gpu/shared_prompts.py > $OUT/shared_prompts.jsonl

`check` lines: relative errors of the kernels, those on unshared answers, and whether two runs are equal.
`time` lines: forward + backward, milliseconds for as many pairs as fill 16,384 tokens unshared; `copies`: every answer
behind its own prompt, `shared` the same answers, `variant` the unshared batch through the kernels that know prefixes.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from luthier.fast.kernels import attention_triton
from luthier.fast.kernels.attention import (
    Schedule,
    packed_attention_backward_reference,
    packed_attention_reference,
)

Sizes = Sequence[tuple[int, int, int]]
SHAPES = {"llama-8b": (32, 8, 128), "smollm2-135m": (9, 3, 64)}
CHECKED = [((130, 33, 65), (1, 40, 4), (66, 1, 120), (257, 70, 200)), ((64, 64, 64), (2300, 100, 700))]
TIMED = [(100, 150, 150), (300, 300, 300), (1000, 250, 250), (3000, 500, 500)]


def laid_out(sizes: Sizes, *, shared: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Lengths and prefixes of the documents."""
    lengths, prefixes, at = [], [], 0
    for prompt, first, second in sizes:
        lengths += [prompt + first, second if shared else prompt + second]
        prefixes += [(0, 0), (at, prompt) if shared else (0, 0)]
        at += sum(lengths[-2:])
    return lengths, prefixes


class Run:
    """Random heads for some documents, and their attention."""

    def __init__(self, shape: tuple[int, int, int], sizes: Sizes, *, shared: bool, variant: bool = False) -> None:
        self.heads, self.groups, self.width = shape
        lengths, prefixes = laid_out(sizes, shared=shared)
        self.tokens, self.scale = sum(lengths), self.width**-0.5
        self.schedule = Schedule.of(lengths, "cuda", prefixes if shared or variant else ())
        made = torch.Generator("cuda").manual_seed(0)
        total = (self.heads + 2 * self.groups) * self.width

        def draw(columns: int) -> Tensor:
            return torch.randn(self.tokens, columns, generator=made, device="cuda").bfloat16()

        self.qkv = draw(total)
        self.dout = draw(self.heads * self.width).unflatten(1, (self.heads, self.width))
        self.dqkv = torch.empty_like(self.qkv)

    def split(self, stacked: Tensor) -> tuple[Tensor, ...]:
        return stacked.unflatten(1, (-1, self.width)).split((self.heads, self.groups, self.groups), dim=1)

    def __call__(self, window: int | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.split(self.qkv)
        out, lse = attention_triton.forward(q, k, v, self.schedule, self.scale, window, None)
        attention_triton.backward(
            self.dout, q, k, v, out, lse, self.schedule, self.scale, window, None, self.dqkv
        )  # fmt: skip
        return out, self.dqkv.clone()

    def errors(self, window: int | None) -> dict[str, float | bool]:
        (out, grad), again = self(window), self(window)
        exact = [part.double() for part in self.split(self.qkv)]
        want_out, lse = packed_attention_reference(*exact, self.schedule, scale=self.scale, window=window)
        want = torch.empty(grad.shape, dtype=torch.float64, device="cuda")
        packed_attention_backward_reference(
            self.dout.double(), *exact, want_out, lse, self.schedule, scale=self.scale, window=window, dqkv_out=want
        )
        found = {"out": error(out, want_out)}
        for name, mine, theirs in zip(("dq", "dk", "dv"), self.split(grad), self.split(want), strict=True):
            found[name] = error(mine, theirs)
        return {**found, "repeats": torch.equal(out, again[0]) and torch.equal(grad, again[1])}


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def milliseconds(run: Run) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(10):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10)
    return sorted(times)[2]


def show(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> int:
    """Check, then time."""
    wrong = 0
    for name, shape in SHAPES.items():
        for number, sizes in enumerate(CHECKED):
            for window in (None, 50):
                try:
                    shared = Run(shape, sizes, shared=True).errors(window)
                    copies = Run(shape, sizes, shared=False).errors(window)
                except Exception:  # noqa: BLE001
                    show(kind="check", shape=name, failed=traceback.format_exc(limit=-3)[-600:])
                    wrong += 1
                    continue
                bad = [key for key, value in shared.items() if key != "repeats" and not value <= 1.2 * copies[key]]
                bad += [] if shared["repeats"] else ["repeats"]
                wrong += bool(bad)
                show(kind="check", shape=name, sizes=number, window=window, wrong=bad, shared=shared, copies=copies)
        for prompt, first, second in TIMED:
            pairs = max(1, 16_384 // (2 * prompt + first + second))
            sizes = [(prompt, first, second)] * pairs
            line = {
                "copies": milliseconds(Run(shape, sizes, shared=False)),
                "variant": milliseconds(Run(shape, sizes, shared=False, variant=True)),
                "shared": milliseconds(Run(shape, sizes, shared=True)),
            }
            show(kind="time", shape=name, prompt=prompt, answers=[first, second], pairs=pairs, **line)
    show(kind="summary", wrong=wrong, device=torch.cuda.get_device_name(), torch=torch.__version__)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
