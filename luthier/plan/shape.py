"""Sizes of a model folder, read from `config.json` and the safetensors headers. No torch, no weights in memory."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["ModelShape", "Tensor", "read_shape"]

BYTES_PER_ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What planning needs to know of a model."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    max_positions: int | None
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        """Number of stored parameters; a tied head counts once."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return sum(tensor.parameters * BYTES_PER_ELEMENT.get(tensor.dtype, 1) for tensor in self.tensors)

    @property
    def linear_tensors(self) -> tuple[Tensor, ...]:
        """Matrices of linear layers inside the decoder layers: what `all-linear` adapts."""
        return tuple(
            tensor
            for tensor in self.tensors
            if len(tensor.shape) == 2 and ".layers." in tensor.name and tensor.name.endswith(".weight")
        )


def read_shape(folder: Path) -> ModelShape:
    """Read a model folder.

    Raises:
        EnvironmentProblem: no `config.json`, a key is missing in it, or there are no safetensors files.
    """
    config = _config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EnvironmentProblem(
            code="M304",
            message=f"{folder} holds no .safetensors file",
            hint="convert the model to safetensors; pickled weights (.bin, .pt) are never loaded",
        )
    tensors = tuple(tensor for file in files for tensor in read_header(file))
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return ModelShape(
            architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
            hidden_size=hidden,
            intermediate_size=int(config.get("intermediate_size") or 4 * hidden),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab_size=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            max_positions=config.get("max_position_embeddings"),
            tensors=tensors,
        )
    except KeyError as error:
        raise EnvironmentProblem(
            code="M303", message=f"{folder / 'config.json'} has no {error}; Luthier plans for decoder language models"
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(code="M303", message=f"cannot read {file}: {error}") from error
    # Some multi-part models keep the language model's sizes one level down.
    return {**value, **value.get("text_config", {})}


def read_header(file: Path) -> list[Tensor]:
    """Names, types and shapes in a safetensors file: an 8-byte little-endian length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100_000_000:
                raise ValueError(f"header of {length:_} bytes")
            header = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise EnvironmentProblem(
            code="M305",
            message=f"{file} is not a complete safetensors file: {error}",
            hint="fetch or convert the model again",
        ) from error
    return [
        Tensor(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"
    ]
