"""Which trained tensor learns at which peak rate.

    embeddings, head     `embedding_learning_rate`, where they are trained themselves
    LoRA+                B matrices and adapters' vectors at ratio x rate, adapters on embeddings at
                         `loraplus_lr_embedding` (arXiv:2402.12354; groups as PEFT's `create_loraplus_optimizer`)
    layerwise decay d    decoder layer l of L at d^(L-1-l), embeddings at d^L, what follows the layers at 1
                         (arXiv:1801.06146, section 3.2: the last layer has the full rate)

LoRA+ and layerwise decay multiply; `embedding_learning_rate` stands by itself. A tied head is the embedding: one
tensor, one rate. The schedule gives every rate the same shape (`schedule.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from luthier.model.freeze import decoder_layers
from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import RecipeError

__all__ = ["peak_rates", "rate_lines", "table_tensors"]


def table_tensors(model: Any, names: Mapping[str, Tensor]) -> tuple[frozenset[str], frozenset[str]]:
    """(names below the input embeddings, names below the output head), adapters on them included.

    A tensor that both share has the name of the embeddings.
    """
    inputs, head = _names_of(model, model.get_input_embeddings()), _names_of(model, model.get_output_embeddings())
    below_inputs = frozenset(name for name in names if _below(name, inputs))
    return below_inputs, frozenset(name for name in names if _below(name, head)) - below_inputs


def peak_rates(model: Any, tensors: Mapping[str, Tensor], section: TrainSection, *, rate: float) -> dict[str, float]:
    """Peak learning rate of each trained tensor.

    Args:
        model: As it is trained (a `PeftModel` or the model itself).
        tensors: Trained tensors by parameter name.
        section: `train` of the recipe.
        rate: `train.learning_rate`.

    Raises:
        RecipeError: a rate is given for tensors of which none is trained.
    """
    inputs, head = table_tensors(model, tensors)
    layers = _Layers(model) if section.layerwise_lr_decay < 1.0 else None
    found: dict[str, float] = {}
    tables = 0
    for name, tensor in tensors.items():
        if section.embedding_learning_rate is not None and name in inputs | head and "lora_" not in name:
            found[name] = section.embedding_learning_rate
            tables += 1
            continue
        found[name] = _loraplus(name, tensor, section, rate)
        if layers is not None:
            found[name] *= section.layerwise_lr_decay ** (layers.count if name in inputs else layers.above(name))
    if section.embedding_learning_rate is not None and not tables:
        raise RecipeError(
            code="T475",
            message="`train.embedding_learning_rate` is given, but neither embeddings nor head are trained",
            hint="remove it, or train them (`method.modules_to_save`, `method.trainable`)",
        )
    return found


def rate_lines(tensors: Mapping[str, Tensor], rates: Mapping[str, float]) -> list[str]:
    """For people, where there is more than one rate: `learning rate 0.0032: 56 tensors, 1,048,576 weights`."""
    distinct = sorted(set(rates.values()), reverse=True)
    if len(distinct) < 2:
        return []
    lines = []
    for value in distinct:
        own = [tensors[name].numel() for name, rate in rates.items() if rate == value]
        lines.append(f"learning rate {value:.3g}: {len(own)} tensors, {sum(own):,} weights")
    return lines


def _loraplus(name: str, tensor: Tensor, section: TrainSection, rate: float) -> float:
    if section.loraplus_lr_ratio is None:
        return rate
    if "lora_embedding_" in name:
        return section.loraplus_lr_embedding
    return rate * section.loraplus_lr_ratio if "lora_B" in name or tensor.ndim == 1 else rate


class _Layers:
    """Place of a parameter among the decoder layers."""

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        prefix, layers = decoder_layers(base)
        self.count = len(layers)
        self._index = re.compile(rf"(?:^|\.){re.escape(prefix)}\.(\d+)\.")

    def above(self, name: str) -> int:
        """Layers between the parameter and the end: 0 for the last layer and for what is outside the layers."""
        found = self._index.search(name)
        return self.count - 1 - int(found.group(1)) if found else 0


def _names_of(model: nn.Module, module: nn.Module | None) -> list[str]:
    return [] if module is None else [name for name, other in model.named_modules() if other is module]


def _below(name: str, prefixes: list[str]) -> bool:
    return any(name.startswith(prefix + ".") for prefix in prefixes)
