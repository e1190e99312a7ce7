"""Write a whole model file by file, so that no more than one file's tensors are in memory.

transformers decides what is in the files: it writes a copy of one number for each tensor, one tensor a file, and its
names, their order, shared tensors and the settings are its own. The files are then cut by huggingface_hub's rule for
the true sizes, and hold what `save_pretrained` would have written, byte for byte.

A model whose tensors transformers turns back into an older form when it saves (split experts) is held whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.model.weights import non_finite_tensors, refuse_non_finite
from luthier.runtime.console import note

__all__ = ["Source", "refuse_bad", "save_weights"]

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Source(Protocol):
    """Tensors of a model that are put together when they are asked for."""

    def outline(self) -> Mapping[str, Any]:
        """Every tensor by its name in the state dict: shape and type; shared ones are one object."""
        ...

    def take(self, names: Sequence[str]) -> dict[str, Tensor]:
        """These, whole and in host memory."""
        ...


def save_weights(model: Any, folder: Path, source: Source, *, max_shard_size: str) -> None:
    """`model.save_pretrained(folder)` with the tensors of `source`.

    Raises:
        RunFailed: a tensor holds NaN or infinity.
    """
    from safetensors.torch import save_file

    outline = source.outline()
    why = _why_whole(model)
    if why is not None:
        note(f"  {why}: process 0 holds all weights while it writes", style="yellow")
        held = source.take(list(outline))
        refuse_bad(held)
        model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=held)
        return
    order, index = _as_transformers_writes(model, folder, outline)
    plan = _plan({name: outline[name] for name in order}, max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        tensors = source.take(names)
        refuse_bad(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
        del tensors
    if plan.is_sharded:
        index = {"metadata": {**index["metadata"], **plan.metadata}, "weight_map": plan.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def refuse_bad(tensors: Mapping[str, Tensor]) -> None:
    """Raise if a tensor of the trained model is not finite."""
    refuse_non_finite(non_finite_tensors(tensors), where="the trained model")


def _why_whole(model: Any) -> str | None:
    """Why the tensors in the files are not those of the model, if they are not."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    if not type(model).__module__.startswith("transformers."):
        return "a model with code of its own may write its weights in another form"
    used = getattr(model, "_weight_conversions", None)
    if used is None:  # not made by `from_pretrained`
        used = get_model_conversion_mapping(model, add_legacy=False)
    return "transformers saves these weights in another form than they have in memory" if used else None


def _as_transformers_writes(model: Any, folder: Path, outline: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """config.json, and (names in their order, index) of a state dict with one number in place of each tensor."""
    small: dict[int, Tensor] = {}
    state = {name: small.setdefault(id(t), torch.zeros(1, dtype=t.dtype)) for name, t in outline.items()}
    model.save_pretrained(folder, max_shard_size=1, state_dict=state)
    file = folder / _INDEX
    if not file.is_file():  # a single tensor
        (folder / _FILE).unlink()
        return list(outline)[:1], {"metadata": {}}
    index: dict[str, Any] = json.loads(file.read_text("utf-8"))
    by_file = {written: name for name, written in index["weight_map"].items()}
    for written in [*by_file, _INDEX]:
        (folder / written).unlink()
    return [by_file[written] for written in sorted(by_file)], index


def _plan(outline: Mapping[str, Any], max_shard_size: str) -> Any:
    from huggingface_hub import split_torch_state_dict_into_shards

    sizes = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in outline.items()}
    return split_torch_state_dict_into_shards(
        sizes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
