"""Which part of an fp8 base makes training slower to learn: forward or backward, weights or what they multiply?

    python3 benchmarks/gpu/fp8_parts.py > $OUT/fp8_parts.jsonl       # real SmolLM2, LoRA, as `curve.py --method lora`

`separate` is no fp8: a 16-bit base whose adapters are added to its rounded output, as in PEFT and on an fp8 base, while
`fast` sums both before it rounds. Each other variant rounds some of the operands of the base's products to 8 bits and
leaves the others in 16; the same rows, adapters and rates. One JSON line a variant and seed: the loss of every step.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.pop(1)  # this folder: its `kernels.py` is also a package's name

import torch
from torch import Tensor

from benchmarks.gpu import curve
from luthier.fast.decoder.bases import unpack
from luthier.fast.decoder.fp8_base import Fp8
from luthier.fast.kernels.fp8 import quantize_rows
from luthier.train import setup

Product = Callable[..., Tensor]


def weight(base: Fp8) -> Tensor:
    """W (N, K) in 16 bits."""
    return torch.cat([unpack(view, base.dtype) for view in base.views])


def rounded(x: Tensor) -> Tensor:
    """Rows in e4m3 and back."""
    q, scale = quantize_rows(x)
    return (q.float() * scale).to(x.dtype)


def rounded_wide(x: Tensor) -> Tensor:
    """Rows in e5m2 (more range, a bit less) and back."""
    scale = x.float().abs().amax(1, keepdim=True).clamp_min(1e-30) / 57344.0
    return ((x.float() / scale).to(torch.float8_e5m2).float() * scale).to(x.dtype)


def transposed(base: Fp8) -> Tensor:
    """The copy for the backward pass as it is rounded, (N, K)."""
    return (base.columns_kn.float() * base.columns_scale).t().to(base.dtype)


FORWARD: dict[str, Product] = {
    "exact": lambda base, x, _=None: torch.nn.functional.linear(x, weight(base), base.bias_n),
}
BACKWARD: dict[str, Product] = {
    "exact": lambda base, g: g @ weight(base),
    "g": lambda base, g: rounded(g) @ weight(base),
    "w": lambda base, g: g @ transposed(base),
    "g in e5m2": lambda base, g: rounded_wide(g) @ transposed(base),
}
VARIANTS = [
    ("fast", None, None), ("fp8", None, None), ("fp8", None, "exact"), ("fp8", "exact", None), ("fp8", None, "g"),
    ("fp8", None, "w"), ("fp8", None, "g in e5m2"), ("fp8", "exact", "exact"), ("separate", None, None),
]  # fmt: skip


@contextmanager
def parts(forward: str | None, backward: str | None, *, separate: bool) -> Iterator[None]:
    """The products of all fp8 bases inside, None: the engine's own; adapters apart from a 16-bit base."""
    kept = Fp8.forward, Fp8.input_gradient, setup.engine_settings
    if separate:
        setup.engine_settings = lambda recipe: replace(kept[2](recipe), fuse_adapters=False)
    if forward:
        Fp8.forward = FORWARD[forward]
    if backward:
        Fp8.input_gradient = BACKWARD[backward]
    try:
        yield
    finally:
        Fp8.forward, Fp8.input_gradient, setup.engine_settings = kept


def main() -> int:
    """All variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", default="", help="regular expression over variants")
    own = parser.parse_args()
    sys.argv = ["curve.py", "--method", "lora", "--steps", "200"]
    options = curve.parse()
    folder = curve.real_model_folder(options)
    if folder is None:
        return 1
    texts = curve.Texts(options, folder)
    exact: dict[int, list[float]] = {}
    wanted = [each for each in VARIANTS if each[0] == "fast" or re.search(own.only, str(each))]
    for variant, forward, backward in wanted:
        for seed in own.seeds:
            with parts(forward, backward, separate=variant == "separate"):
                options.stop_after = own.steps
                found: dict[str, Any] = curve.run(variant, seed, options, texts, folder)
            losses = found["losses"]
            exact.setdefault(seed, losses)
            above = [round(a - b, 4) for a, b in zip(losses, exact[seed], strict=True)]
            line = {
                "variant": variant, "forward": forward, "backward": backward, "seed": seed, "losses": losses,
                "above": above, "mean_above": sum(above) / len(above),
            }  # fmt: skip
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
