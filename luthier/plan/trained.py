"""Which parameters get a gradient, by method. Counts are tested against what PEFT and transformers really make."""

from __future__ import annotations

import re

from luthier.plan.shape import ModelShape, Tensor
from luthier.recipe.schema import MethodSection

__all__ = ["adapted_tensors", "has_adapters", "layer_of", "trainable_parameters", "trained_tensors"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def has_adapters(method: MethodSection) -> bool:
    """LoRA or QLoRA."""
    return method.name in ("lora", "qlora")


def layer_of(tensor: Tensor) -> int | None:
    """Index of the decoder layer a tensor belongs to; None outside the layers."""
    found = _LAYER.search(tensor.name)
    return int(found.group(1)) if found else None


def trainable_parameters(shape: ModelShape, method: MethodSection) -> int:
    """Parameters that get a gradient, adapters included."""
    adapters = sum(method.r * sum(tensor.shape) for tensor in adapted_tensors(shape, method))
    return adapters + sum(tensor.parameters for tensor in trained_tensors(shape, method))


def adapted_tensors(shape: ModelShape, method: MethodSection) -> list[Tensor]:
    """Matrices that get an adapter; none without adapters."""
    if not has_adapters(method):
        return []
    return [tensor for tensor in shape.linear_tensors if _targeted(tensor, method.target_modules)]


def trained_tensors(shape: ModelShape, method: MethodSection) -> list[Tensor]:
    """Tensors of the model itself that are trained: all, the unfrozen ones, or those of `modules_to_save`."""
    if method.name == "full":
        return list(shape.tensors)
    if method.name == "freeze":
        return [tensor for tensor in shape.tensors if _unfrozen(tensor, shape, method)]
    saved = [_tied_name(name, shape) for name in method.modules_to_save]
    return [tensor for tensor in shape.tensors if any(f".{name}." in f".{tensor.name}" for name in saved)]


def _tied_name(name: str, shape: ModelShape) -> str:
    """A tied head is the embedding under a second name; it is trained once."""
    return "embed_tokens" if shape.tied and name == "lm_head" else name


def _targeted(tensor: Tensor, targets: str | list[str]) -> bool:
    module = tensor.name.removesuffix(".weight")
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith("." + target) for target in targets)


def _unfrozen(tensor: Tensor, shape: ModelShape, method: MethodSection) -> bool:
    names = [tensor.name]
    if shape.tied and tensor.name.endswith("embed_tokens.weight"):
        names.append("lm_head.weight")
    if any(re.search(pattern, name) for pattern in method.trainable for name in names):
        return True
    layer = layer_of(tensor)
    return bool(method.last_n_layers and layer is not None and layer >= shape.layers - method.last_n_layers)
