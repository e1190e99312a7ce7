"""What a gradient should be, without anything of `luthier.fast`: each document alone through plain transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from luthier.data.batch import collate
from luthier.data.types import Example

__all__ = [
    "Errors",
    "Step",
    "compare",
    "exact_copy",
    "fill_adapters",
    "gradients_of",
    "padded_step",
    "plain_step",
    "worse_of",
]


@dataclass(frozen=True, slots=True)
class Step:
    """Loss of a trained token and the gradient of every trained parameter, in fp32 or better."""

    loss: float
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative L2 errors against a reference."""

    loss: float
    total: float
    """Of all gradients as one vector."""
    tensors: Mapping[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """Name and error of the worst tensor."""
        return max(self.tensors.items(), key=lambda item: item[1])


def plain_step(model: nn.Module, documents: Sequence[Example]) -> Step:
    """One forward and backward pass of each document by itself; loss in fp32 (fp64 for fp64 models)."""
    device = next(model.parameters()).device
    weight_sum = sum(float(example.weights[i]) for example in documents for i in range(len(example)))
    model.zero_grad(set_to_none=True)
    total = 0.0
    for example in documents:
        ids = torch.as_tensor(example.ids, device=device, dtype=torch.int64)
        weights = torch.as_tensor(example.weights, device=device, dtype=torch.float32)[1:]
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        exact = logits if logits.dtype == torch.float64 else logits.float()
        loss = (cross_entropy(exact, ids[1:], reduction="none") * weights).sum() / weight_sum
        loss.backward()
        total += float(loss.detach())
    return Step(total, gradients_of(model))


def padded_step(model: nn.Module, documents: Sequence[Example]) -> Step:
    """The same with all documents padded to one rectangle: other roundings of the same numbers."""
    from benchmarks.gpu.trainers import PlainEngine

    batch = collate(documents).to(next(model.parameters()).device)
    model.zero_grad(set_to_none=True)
    loss = PlainEngine(model).loss(batch).loss / batch.weight_sum
    loss.backward()
    return Step(float(loss.detach()), gradients_of(model))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, taken out of the model; a trained parameter without one counts as zero."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = parameter.grad
            found[name] = torch.zeros_like(parameter, dtype=torch.float32) if grad is None else grad.detach()
            parameter.grad = None
    return {name: grad if grad.dtype == torch.float64 else grad.float() for name, grad in found.items()}


def exact_copy(model: Any, dtype: torch.dtype) -> Any:
    """A copy in `dtype` with the same values; 4-bit layers become plain ones with what they stand for."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Linear4bit" and type(child).__module__.startswith("bitsandbytes"):
                setattr(module, name, _unpacked(child, dtype))
    if getattr(twin, "is_quantized", False):
        twin.is_quantized = False  # or `.to` refuses
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(dtype)
    for buffer in twin.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return twin


def _unpacked(layer: Any, dtype: torch.dtype) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return plain


def fill_adapters(model: nn.Module, *, std: float = 0.02, seed: int = 5) -> None:
    """Give LoRA's B a value: with the zeros it starts from, A has no gradient to compare."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if "lora_B" in name:
                generator = torch.Generator(device=parameter.device).manual_seed(seed + index)
                parameter.normal_(0, std, generator=generator)


def relative(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference||; infinite for anything but zero against zero, or where not finite."""
    difference = float(torch.linalg.vector_norm(value.to(reference.dtype) - reference, dtype=torch.float64))
    size = float(torch.linalg.vector_norm(reference, dtype=torch.float64))
    if difference != difference or size != size:
        return float("inf")
    return difference / size if size > 0.0 else (0.0 if difference == 0.0 else float("inf"))


def compare(step: Step, reference: Step) -> Errors:
    """Errors of a step. Every gradient of the reference must be there."""
    missing = set(reference.gradients) ^ set(step.gradients)
    if missing:
        raise AssertionError(f"gradients differ in their names: {sorted(missing)[:4]}")
    tensors = {name: relative(step.gradients[name], exact) for name, exact in reference.gradients.items()}
    square = sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in reference.gradients.values())
    wrong = sum(
        float(torch.linalg.vector_norm(step.gradients[name].to(g.dtype) - g, dtype=torch.float64)) ** 2
        for name, g in reference.gradients.items()
    )
    loss = abs(step.loss - reference.loss) / abs(reference.loss)
    return Errors(loss, (wrong / square) ** 0.5 if square else float("inf"), tensors)


def worse_of(one: Errors, other: Errors) -> Errors:
    """The larger of two errors, number by number."""
    tensors = {name: max(error, other.tensors[name]) for name, error in one.tensors.items()}
    return Errors(max(one.loss, other.loss), max(one.total, other.total), tensors)
