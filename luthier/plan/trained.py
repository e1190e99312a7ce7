"""Which parameters get a gradient, by method. Counts are tested against what PEFT and transformers really make.

What Spectrum chooses hangs on the weights, which a plan does not read. How many matrices of each type it chooses does
not, so without a scan the first of each type stand in: numbers of parameters are exact, and the lowest trained layer
is taken to be 0, which makes memory and time upper bounds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from luthier.plan.shape import ModelShape, Tensor
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RecipeError
from luthier.spectrum.listing import matching, read_listing, some_names, unmatched
from luthier.spectrum.names import is_embedding, natural_order, type_of
from luthier.spectrum.noise import SMALLEST_SIDE
from luthier.spectrum.select import chosen_count, ends_of, pattern_of
from luthier.spectrum.tensors import why_not_ranked

__all__ = ["adapted_tensors", "has_adapters", "layer_of", "trainable_parameters", "trained_how", "trained_tensors"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def has_adapters(method: MethodSection) -> bool:
    """LoRA or QLoRA."""
    return method.name in ("lora", "qlora")


def layer_of(tensor: Tensor) -> int | None:
    """Index of the decoder layer a tensor belongs to; None outside the layers."""
    found = _LAYER.search(tensor.name)
    return int(found.group(1)) if found else None


def trainable_parameters(shape: ModelShape, method: MethodSection, unfrozen: Sequence[str] | None = None) -> int:
    """Parameters that get a gradient, adapters included. `unfrozen`: see `trained_tensors`."""
    adapted = adapted_tensors(shape, method)
    adapters = sum(method.r * sum(tensor.shape) for tensor in adapted)
    adapters += sum(tensor.shape[0] for tensor in adapted if method.use_dora)  # a magnitude for each output
    return adapters + sum(tensor.parameters for tensor in trained_tensors(shape, method, unfrozen))


def adapted_tensors(shape: ModelShape, method: MethodSection) -> list[Tensor]:
    """Matrices that get an adapter; none without adapters."""
    if not has_adapters(method):
        return []
    return [tensor for tensor in shape.linear_tensors if _targeted(tensor, method.target_modules)]


def trained_tensors(shape: ModelShape, method: MethodSection, unfrozen: Sequence[str] | None = None) -> list[Tensor]:
    """Tensors of the model itself that are trained: all, the unfrozen ones, or those of `modules_to_save`.

    Args:
        shape: of the model.
        method: of the recipe.
        unfrozen: what a scan chose (patterns); without it Spectrum's file, or stand-ins of the right number.

    Raises:
        RecipeError: `method.spectrum_file` cannot be read, or names what the model does not have.
    """
    if method.name == "full":
        return list(shape.tensors)
    if method.name == "freeze":
        return [tensor for tensor in shape.tensors if _unfrozen(tensor, shape, method)]
    if method.name == "spectrum":
        return _listed(shape, _patterns(shape, method, unfrozen))
    saved = [_tied_name(name, shape) for name in method.modules_to_save]
    return [tensor for tensor in shape.tensors if any(f".{name}." in f".{tensor.name}" for name in saved)]


def trained_how(method: MethodSection, unfrozen: Sequence[str] | None) -> str:
    """How far it is known which tensors are trained; empty where the recipe says it all."""
    if method.name != "spectrum":
        return ""
    if unfrozen is not None:
        return "exact: chosen by the scan"
    if method.spectrum_file is not None:
        return f"exact: the list in {method.spectrum_file}"
    lowest = (
        "the backward pass goes through all layers, for the embeddings are trained"
        if method.train_embeddings
        else "layer 0 is taken to be the lowest, so memory and time are upper bounds"
    )
    share = f"{method.top_percent:g}% of each module type"
    return f"their number is exact ({share}), which layers only a scan (`luthier spectrum`) tells; {lowest}"


def _patterns(shape: ModelShape, method: MethodSection, unfrozen: Sequence[str] | None) -> Sequence[str]:
    """What Spectrum trains: of the scan, of the file, or the first tensors of each type in the right number."""
    if unfrozen is not None:
        return unfrozen
    if method.spectrum_file is not None:
        return read_listing(Path(method.spectrum_file).expanduser()).patterns
    names = [tensor.name for tensor in shape.tensors]
    by_type: dict[str, list[str]] = {}
    for tensor in shape.tensors:
        small = len(tensor.shape) > 1 and min(tensor.shape[-2:]) < SMALLEST_SIDE
        if why_not_ranked(tensor.name, tensor.dtype, tensor.shape) or (method.spectrum_score != "compat" and small):
            continue
        kind = type_of(tensor.name, each_expert=method.spectrum_score == "compat")
        by_type.setdefault(kind, []).append(tensor.name)
    first = [
        pattern_of(name, names)
        for found in by_type.values()
        for name in sorted(found, key=natural_order)[: chosen_count(len(found), method.top_percent)]
    ]
    return [*(ends_of(names, tied=shape.tied) if method.train_embeddings else ()), *first]


def _listed(shape: ModelShape, patterns: Sequence[str]) -> list[Tensor]:
    """Tensors that the patterns match; a tied head is the embedding under a second name."""
    aliases = {tensor.name: tensor for tensor in shape.tensors}
    if shape.tied:
        table = next((tensor for tensor in shape.tensors if is_embedding(tensor.name)), None)
        aliases |= {"lm_head.weight": table} if table else {}
    missing = unmatched(patterns, list(aliases))
    if missing:
        raise RecipeError(
            code="M332",
            message=f"`unfrozen_parameters` has {missing[0]!r}, which matches no parameter of this model"
            + (f" (nor do {len(missing) - 1} others)" if len(missing) > 1 else ""),
            hint=f"names here: {some_names(aliases)}",
        )
    chosen = {id(aliases[name]) for name in matching(patterns, aliases)}
    return [tensor for tensor in shape.tensors if id(tensor) in chosen]


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
