"""Times tiles of the gated unit with adapters against the memory's floor; one JSON line a candidate.

python3 benchmarks/gpu/glu_adapted.py
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench

sys.path[0] = str(Path(__file__).resolve().parents[2])

from luthier.fast.kernels import glu_adapted, glu_adapted_triton  # noqa: E402

BANDWIDTH = 4.27e12


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


class Case:
    """Random inputs of one shape."""

    def __init__(self, m: int, f: int, p: int, q: int) -> None:
        self.m, self.f = m, f
        self.raw, self.u, self.b = draw(m, 2 * f), draw(m, p), draw(2 * f, p + 32)[:, :p]
        self.b[:f, p // 2 :] = 0
        self.b[f:, : p // 2] = 0
        self.part = glu_adapted.OfGateUp(self.u, self.b, p // 2, p // 2, p // 2)
        self.dprod, self.v, self.a = draw(m, f), draw(m, q), draw(q, f)
        self.complete = True
        self.out, self.grads = torch.empty_like(self.dprod), torch.empty_like(self.raw)
        gate, up = (self.raw.float() + self.u.float() @ self.b.float().t()).chunk(2, 1)
        self.reference = torch.nn.functional.silu(gate) * up

    def forward(self) -> None:
        glu_adapted.glu_adapted(self.raw, "silu", self.part, out_mf=self.out)

    def backward(self) -> None:
        glu_adapted.glu_adapted_backward(
            self.dprod,
            self.raw,
            "silu",
            up=self.part if self.complete else None,
            down=glu_adapted.OfProduct(self.v, self.a),
            out_m2f=self.grads,
        )

    def measure(self) -> dict[str, Any]:
        self.forward()
        error = float((self.out.float() - self.reference).norm() / self.reference.norm())
        ms, back = do_bench(self.forward, return_mode="median"), do_bench(self.backward, return_mode="median")
        self.complete = False
        down_only = do_bench(self.backward, return_mode="median")
        self.complete = True
        forward_floor, back_floor = (n * self.m * self.f / BANDWIDTH for n in (6, 10))
        return {
            "error": error, "forward_us": round(ms * 1e3, 1), "over_floor": round(ms * 1e-3 / forward_floor, 3),
            "backward_us": round(back * 1e3, 1), "back_over": round(back * 1e-3 / back_floor, 3),
            "down_only_us": round(down_only * 1e3, 1), "down_over": round(down_only * 1e-3 / back_floor, 3),
        }  # fmt: skip


def main() -> None:
    for shape in ((16384, 14336, 32, 16), (16384, 8192, 32, 16)):
        case = Case(*shape)
        for tile in product((2, 4, 8, 16), (256, 512, 1024), (4, 8)):
            glu_adapted_triton.FORWARD = glu_adapted_triton.BACKWARD = tile
            try:
                line = case.measure()
            except Exception as error:  # noqa: BLE001  a candidate that does not compile is said
                line = {"failed": f"{type(error).__name__}: {error}"[:200]}
            print(json.dumps({"m": case.m, "f": case.f, "tile": tile, **line}), flush=True)


if __name__ == "__main__":
    main()
