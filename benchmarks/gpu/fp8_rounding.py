"""Where the loss of an fp8 base comes from, and what rounding that knows its inputs would give back.

    python3 benchmarks/gpu/fp8_rounding.py > $OUT/fp8_rounding.jsonl        # real SmolLM2; GSM8K from the pack
    python benchmarks/gpu/fp8_rounding.py --device cpu --data FILE --rows 8 --calibration 4

The held-out loss (answers of GSM8K rows) of the untouched model, in fp32 with weights and activations rounded as the
engine rounds them (e4m3, a scale a row), by part. `compensated`: each column of a weight is rounded in turn and its
error is spread over the columns to come so that the output on calibration rows changes least (GPTQ, arXiv:2210.17323,
with the e4m3 grid; columns in the order of their energy). One JSON line a variant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.pop(1)  # this folder: its `kernels.py` is also a package's name

import torch
from torch import Tensor, nn

from benchmarks.gpu.curve import Texts, real_model_folder
from luthier.fast.kernels.fp8 import quantize_rows_reference

PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def rounded(x: Tensor) -> Tensor:
    """Rows in e4m3 and back."""
    q, scale = quantize_rows_reference(x.flatten(0, -2))
    return (q.float() * scale).view(x.shape)


def compensated(weight: Tensor, gram: Tensor, damping: float = 0.01, block: int = 64) -> Tensor:
    """`weight` (N, K) on the same grid as `rounded`, so that (W - Q) x is small for inputs with `gram` = sum x x^T."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    order = gram.diagonal().argsort(descending=True)
    left, gram = weight[:, order].clone(), gram[order][:, order].clone()
    gram.diagonal().add_(damping * gram.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    found = torch.empty_like(left)
    width = left.shape[1]
    for begin in range(0, width, block):
        end = min(begin + block, width)
        errors = torch.empty_like(left[:, begin:end])
        for column in range(begin, end):
            value = left[:, column : column + 1]
            grid = (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
            found[:, column : column + 1] = grid
            error = (value - grid) / inverse[column, column]
            left[:, column:end] -= error * inverse[column, column:end]
            errors[:, column - begin : column - begin + 1] = error
        left[:, end:] -= errors @ inverse[begin:end, end:]
    return found[:, order.argsort()]


class Study:
    """A model whose products can be rounded."""

    def __init__(self, model: Any, rows: list[Any], calibration: list[Any], device: str) -> None:
        self.model, self.rows, self.calibration, self.device = model, rows, calibration, device
        self.layers = model.model.layers
        self.exact = {id(linear): linear.weight.data for linear in self.linears()}
        self.hooks: list[Any] = []

    def linears(self, products: tuple[int, ...] = (0, 1, 2, 3)) -> list[nn.Linear]:
        names = [name for number in products for name in PRODUCTS[number]]
        return [layer.get_submodule(name) for layer in self.layers for name in names]

    def ids(self, example: Any) -> Tensor:
        return torch.tensor(example.ids, device=self.device)[None]

    @torch.no_grad()
    def loss(self) -> float:
        total, count = 0.0, 0
        for example in self.rows:
            ids = self.ids(example)
            weights = torch.tensor(example.weights, device=self.device)[1:]
            nll = -self.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            total += float((nll * weights).sum())
            count += int(weights.sum())
        return total / count

    def restore(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        for linear in self.linears():
            linear.weight.data = self.exact[id(linear)]

    def round_inputs(self, products: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        for linear in self.linears(products):
            self.hooks.append(linear.register_forward_pre_hook(lambda _, args: (rounded(args[0]),)))

    def round_weights(self, products: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        for linear in self.linears(products):
            linear.weight.data = rounded(self.exact[id(linear)])

    @torch.no_grad()
    def compensate(self) -> list[float]:
        """Layer by layer, each on inputs that earlier layers already rounded; error against plain rounding."""
        better = []
        for layer in self.layers:
            for names in PRODUCTS:
                linears = [layer.get_submodule(name) for name in names]
                gram = self.gram(linears[0])
                for linear in linears:
                    weight = self.exact[id(linear)]
                    linear.weight.data = compensated(weight, gram)
                    left, plain = weight - linear.weight.data, weight - rounded(weight)
                    better.append(float((((left @ gram) * left).sum() / ((plain @ gram) * plain).sum()).sqrt()))
        return better

    def gram(self, linear: nn.Linear) -> Tensor:
        found: list[Tensor] = []

        def keep(_: Any, args: tuple[Tensor, ...]) -> None:
            rows = rounded(args[0]).flatten(0, -2)
            found[:] = [rows.t() @ rows + (found[0] if found else 0.0)]

        hook = linear.register_forward_pre_hook(keep)
        for example in self.calibration:
            self.model.model(self.ids(example))
        hook.remove()
        return found[0]


def main() -> int:
    """All variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    site = Path(os.environ.get("SITE", "site"))
    parser.add_argument("--data", type=Path, default=site / "data" / "train.jsonl")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--calibration", type=int, default=64)
    options = parser.parse_args()
    options.random, options.tiny, options.max_doc = False, False, 1024
    folder = real_model_folder(options)
    if folder is None:
        return 1
    from transformers import AutoModelForCausalLM

    texts = Texts(options, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(options.device).eval()
    study = Study(model, texts.examples[-options.rows :], texts.examples[: options.calibration], options.device)
    exact = study.loss()

    def show(variant: str, **more: Any) -> None:
        loss = study.loss()
        print(json.dumps({"variant": variant, "loss": loss, "above_exact": loss - exact, **more}), flush=True)

    show("exact")
    study.round_inputs()
    show("inputs")
    study.round_weights()
    show("inputs and weights")
    study.restore()
    study.round_weights()
    show("weights")
    for number, names in enumerate(PRODUCTS):
        study.restore()
        others = tuple(other for other in range(4) if other != number)
        study.round_inputs(others)
        study.round_weights(others)
        show(f"inputs and weights, all but {names[0]}")
    study.restore()
    study.round_inputs()
    began = time.perf_counter()
    better = study.compensate()
    show(
        "inputs, weights compensated", seconds=time.perf_counter() - began,
        error_of_plain_rounding=sum(better) / len(better),
    )  # fmt: skip
    for hook in study.hooks:
        hook.remove()
    show("weights compensated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
