"""The tensors of a model folder: which can be ranked, which not and why; read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.spectrum.names import is_embedding, is_head, layer_of, natural_order

__all__ = ["Skipped", "Stored", "list_tensors", "read_tensor", "why_not_ranked"]

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that can be ranked, as a file has it."""

    name: str
    file: Path
    dtype: str
    """As safetensors says it: F64, F32, F16, BF16."""
    shape: tuple[int, ...]
    """(n, m), or (experts, n, m)."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor that is not ranked."""

    name: str
    reason: str


def list_tensors(files: Sequence[Path]) -> tuple[list[Stored], list[Skipped]]:
    """Every tensor of the files, in the order of the model, from their headers alone. `files`: checked safetensors."""
    from safetensors import safe_open

    found, skipped = [], []
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (a safetensors file, not a dict)
                view = stream.get_slice(name)
                stored = Stored(name, file, str(view.get_dtype()), tuple(view.get_shape()))
                reason = why_not_ranked(name, stored.dtype, stored.shape)
                if reason:
                    skipped.append(Skipped(name, reason))
                else:
                    found.append(stored)
    found.sort(key=lambda stored: natural_order(stored.name))
    return found, sorted(skipped, key=lambda item: natural_order(item.name))


def why_not_ranked(name: str, dtype: str, shape: Sequence[int]) -> str | None:
    """The reason not to rank a tensor; None for one that is ranked. `dtype` as safetensors says it."""
    dimensions = len(shape)
    if is_embedding(name) or is_head(name):
        return "embeddings and head are not ranked: `train_embeddings` decides"
    if dimensions < 2:
        return f"{dimensions}-D (a norm or a bias): it has no spectrum"
    if layer_of(name) is None:
        return "outside the layers: there is nothing to rank it against"
    if dtype not in _FLOATS:
        return f"stored as {dtype}: quantised weights are no plain matrix; scan the original model"
    if dimensions == 3 and "expert" not in name:
        return "3-D, and no stack of experts"
    if dimensions > 3:
        return f"{dimensions}-D"
    return "empty" if 0 in shape else None


def read_tensor(stored: Stored) -> Any:
    """The tensor as it is stored, on the CPU.

    The file is opened for this tensor alone: an open one keeps every page that was read in memory.
    """
    from safetensors import safe_open

    with safe_open(stored.file, framework="pt") as stream:
        return stream.get_tensor(stored.name)
