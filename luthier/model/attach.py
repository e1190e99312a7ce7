"""Adapters on disk: is this folder one, does it fit this base, and put it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.model.identity import BaseRecord
from luthier.model.quiet import quiet_libraries
from luthier.model.weights import check_weight_files, non_finite_tensors, refuse_non_finite, tensors_of
from luthier.runtime.errors import EnvironmentProblem, RecipeError, RunFailed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = [
    "attach_adapter", "base_record", "cast_adapters", "check_adapter_files", "check_same_base", "is_adapter",
    "is_adapter_parameter",
]  # fmt: skip


def base_record(model: Any) -> BaseRecord | None:
    """Where a model that `load_base` made came from; None for other models. Works through PEFT wrappers."""
    record = getattr(model, "luthier_base", None)
    return record if isinstance(record, BaseRecord) else None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (and not a whole model)."""
    return (folder / "adapter_config.json").is_file()


def check_adapter_files(folder: Path) -> None:
    """An adapter folder must exist, have its settings, and its weights as safetensors.

    Raises:
        RecipeError: not an adapter folder.
        EnvironmentProblem: pickled, missing or broken weights.
    """
    if not is_adapter(folder):
        raise RecipeError(
            code="M324",
            message=f"{folder} is not an adapter folder: it has no adapter_config.json",
            hint="give the `final` folder of a run with `method: lora`",
        )
    if not (folder / "adapter_model.safetensors").is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise EnvironmentProblem(
            code="M306" if pickled else "M304",
            message=f"{folder} has no adapter_model.safetensors"
            + (" but a pickled adapter_model.bin, which is never opened" if pickled else ""),
            hint="save the adapter again as safetensors",
        )
    check_weight_files(folder)
    file = folder / "adapter_config.json"
    try:
        kind = json.loads(file.read_text("utf-8")).get("peft_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise EnvironmentProblem(code="M303", message=f"{file} is not a JSON object: {error}") from error
    if kind != "LORA":
        raise RecipeError(code="M324", message=f"{folder} is an adapter of type {kind!r}; only LORA is supported")


def check_same_base(record: dict[str, Any] | None, base: PreTrainedModel, folder: Path) -> None:
    """The base must be the one the adapter was trained on, byte for byte, if that is recorded.

    Raises:
        RunFailed: it is another one.
    """
    known, now = (record or {}).get("base") or {}, base_record(base)
    if now is not None and known.get("hash") not in (None, now.hash):
        raise RunFailed(
            code="M318",
            message=f"{folder} was trained on {known.get('name_or_path')!r}; {now.name_or_path!r} has other weights",
            hint="name the base it was trained on (`model.name_or_path`, `model.revision`)",
        )


def attach_adapter(
    base: PreTrainedModel, folder: Path, *, trainable: bool, dtype: torch.dtype | None = None
) -> PeftModel:
    """Put a saved adapter on its base; its float tensors get the type of the base, or `dtype`.

    Raises:
        RunFailed: a tensor of the adapter has no place in the model, has another shape, is missing or is not finite.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    refuse_non_finite(non_finite_tensors(tensors_of([folder / "adapter_model.safetensors"])), where=str(folder))
    try:
        with quiet_libraries():
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable, autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise RunFailed(
            code="M324", message=f"the adapter in {folder} does not fit this base: {str(error).strip()[-300:]}",
            hint="name the base it was trained on, with the same `model.new_tokens`",
        ) from error  # fmt: skip
    _check_adapter_complete(model, folder)
    cast_adapters(model, dtype or base.dtype)
    if dtype not in (None, base.dtype):
        # The first load went through tensors of the base's type and was rounded to it.
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    return model


def _check_adapter_complete(model: PeftModel, folder: Path) -> None:
    """Every tensor of the file is in the model and the other way round (PEFT only warns)."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stream:
        saved = set(stream.keys())
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    lacking, useless = sorted(needed - saved), sorted(saved - needed)
    if lacking or useless:
        which = (
            f"file lacks {', '.join(lacking[:3])}" if lacking else f"model has no place for {', '.join(useless[:3])}"
        )
        raise RunFailed(
            code="M324", message=f"the adapter in {folder} does not fit: the {which}",
            hint="name the base it was trained on, with the same `model.new_tokens`",
        )  # fmt: skip


def cast_adapters(model: PeftModel, dtype: torch.dtype) -> None:
    """Give every adapter tensor one float type: no mixed products, no hidden casts in the forward pass."""
    for name, parameter in model.named_parameters():
        if is_adapter_parameter(name) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def is_adapter_parameter(name: str) -> bool:
    """Whether PEFT added this parameter (LoRA factors, DoRA magnitudes, full copies, token rows)."""
    return any(mark in name for mark in ("lora_", ".modules_to_save.", "trainable_tokens_"))
