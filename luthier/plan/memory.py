"""Bytes a fine-tune needs on one device. Pure arithmetic over a `ModelShape` and a recipe.

Exact: weights, gradients, optimizer states, masters (counts of parameters times bytes). Estimated: activations,
by counting the tensors a pre-norm decoder layer keeps for its backward pass (formula at `activation_elements`),
and the chunk of logits. What the allocator adds is not counted. `docs/plan.md` says how far to trust it.

Units: bytes; one micro-batch of `tokens` tokens.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from luthier.plan.shape import ModelShape, Tensor
from luthier.recipe.schema import MethodSection, Recipe

__all__ = ["MemoryPlan", "plan_memory", "trainable_parameters"]

NF4_BYTES = 0.5 + (1 + 4 / 256) / 64
"""A 4-bit value, an 8-bit scale per 64 values, an fp32 scale per 256 scales (QLoRA, arXiv:2305.14314)."""
ADAM_BYTES = 8
"""Two fp32 moments a trainable parameter."""
LOGIT_ROWS = 1024
"""Supervised tokens whose logits exist at once (`fast/head.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the bytes go."""

    parameters: int
    trainable: int
    tokens: int
    weights: int
    gradients: int
    optimizer: int
    masters: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.masters + self.activations + self.logits

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary, with the total."""
        return {**asdict(self), "total": self.total}


def plan_memory(shape: ModelShape, recipe: Recipe, *, dtype_bytes: int, tokens: int) -> MemoryPlan:
    """Memory of one training step with micro-batches of `tokens` tokens.

    Args:
        shape: Sizes of the base model.
        recipe: What is trained, and how.
        dtype_bytes: Bytes of a weight in the compute type (4 or 2).
        tokens: Tokens in one micro-batch.
    """
    trainable = trainable_parameters(shape, recipe.method)
    adapters = trainable if recipe.method.name in ("lora", "qlora") else 0
    weights = _weight_bytes(shape, recipe, dtype_bytes) + adapters * dtype_bytes
    elements = activation_elements(shape, recipe.method)
    if recipe.train.gradient_checkpointing is True:
        kept = tokens * shape.layers * shape.hidden_size + tokens * elements
    else:
        kept = tokens * shape.layers * elements
    return MemoryPlan(
        parameters=shape.parameters,
        trainable=trainable,
        tokens=tokens,
        weights=weights,
        gradients=trainable * dtype_bytes,
        optimizer=trainable * ADAM_BYTES,
        masters=trainable * 4 if dtype_bytes < 4 else 0,
        activations=kept * dtype_bytes,
        logits=min(tokens, LOGIT_ROWS) * shape.vocab_size * (4 + 2 * dtype_bytes),
    )


def activation_elements(shape: ModelShape, method: MethodSection) -> int:
    """Elements one token keeps in one layer for the backward pass.

    Two norms (input and output each), q, k, v before and after rotation (v once), the attention output, gate, up,
    their activation and product; with adapters also the rank-r products.
    """
    query = shape.heads * shape.head_dim
    key_value = shape.key_value_heads * shape.head_dim
    elements = 4 * shape.hidden_size + 3 * query + 3 * key_value + 4 * shape.intermediate_size
    return elements + (7 * method.r if method.name in ("lora", "qlora") else 0)


def trainable_parameters(shape: ModelShape, method: MethodSection) -> int:
    """Parameters that get a gradient."""
    if method.name == "full":
        return shape.parameters
    if method.name == "freeze":
        return sum(tensor.parameters for tensor in shape.tensors if _unfrozen(tensor, shape, method))
    adapted = [tensor for tensor in shape.linear_tensors if _targeted(tensor, method.target_modules)]
    extra = [
        tensor for tensor in shape.tensors if any(f".{name}." in f".{tensor.name}" for name in method.modules_to_save)
    ]
    return sum(method.r * sum(tensor.shape) for tensor in adapted) + sum(tensor.parameters for tensor in extra)


def _targeted(tensor: Tensor, targets: str | list[str]) -> bool:
    module = tensor.name.removesuffix(".weight")
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith("." + target) for target in targets)


def _unfrozen(tensor: Tensor, shape: ModelShape, method: MethodSection) -> bool:
    if any(re.search(pattern, tensor.name) for pattern in method.trainable):
        return True
    layer = re.search(r"\.layers\.(\d+)\.", tensor.name)
    return bool(method.last_n_layers and layer and int(layer.group(1)) >= shape.layers - method.last_n_layers)


def _weight_bytes(shape: ModelShape, recipe: Recipe, dtype_bytes: int) -> int:
    quantized = recipe.method.name == "qlora" or recipe.model.quantization == "nf4"
    linear = sum(tensor.parameters for tensor in shape.linear_tensors) if quantized else 0
    return round(linear * NF4_BYTES) + (shape.parameters - linear) * dtype_bytes
