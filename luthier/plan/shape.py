"""Sizes of a model: from a folder's `config.json` and safetensors headers, or from a `config.json` alone.

No torch, no weights in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from luthier.plan.families import KNOWN_FAMILIES, family_tensors
from luthier.runtime.errors import EnvironmentProblem

__all__ = ["ModelShape", "Tensor", "read_header", "read_shape", "shape_from_config"]

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


@dataclass(frozen=True, kw_only=True)
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
    family: str = "unknown"
    """`model_type` of the config."""
    qk_norm: bool = False
    """q and k are normalised per head (Qwen3, Gemma 3)."""
    norms_per_layer: int = 2
    """Norms over the hidden size in a layer (4 in Gemma 2 and 3)."""
    window: int | None = None
    """Tokens a sliding-window layer sees; None: all layers see everything."""
    windowed_layers: int = 0
    """How many layers have the window."""
    source: str = "config.json and safetensors headers"
    """How the sizes are known."""

    @cached_property
    def parameters(self) -> int:
        """Number of stored parameters; a tied head counts once."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return sum(tensor.parameters * BYTES_PER_ELEMENT.get(tensor.dtype, 1) for tensor in self.tensors)

    @cached_property
    def linear_tensors(self) -> tuple[Tensor, ...]:
        """Matrices of linear layers inside the decoder layers: what `all-linear` adapts."""
        return tuple(
            tensor
            for tensor in self.tensors
            if len(tensor.shape) == 2 and ".layers." in tensor.name and tensor.name.endswith(".weight")
        )

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads; of all value heads, too."""
        return self.key_value_heads * self.head_dim


def read_shape(folder: Path) -> ModelShape:
    """Read a model folder; without safetensors files the tensors follow from `config.json` for known families.

    Raises:
        EnvironmentProblem: no `config.json`, a key is missing in it, or there are no safetensors files
            and the family is not known.
    """
    config = _config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        tensors = tuple(tensor for file in files for tensor in read_header(file))
        return _shape(config, tensors, str(folder / "config.json"), source="config.json and safetensors headers")
    if config.get("model_type") not in KNOWN_FAMILIES:
        raise EnvironmentProblem(
            code="M304",
            message=f"{folder} holds no .safetensors file",
            hint="convert the model to safetensors; pickled weights (.bin, .pt) are never loaded",
        )
    return shape_from_config(config, where=str(folder / "config.json"), source="config.json alone")


def shape_from_config(config: Mapping[str, Any], *, where: str, source: str) -> ModelShape:
    """Sizes from the values of a `config.json`; the tensors are those that transformers would make.

    Args:
        config: its values.
        where: for messages.
        source: what `ModelShape.source` says.

    Raises:
        EnvironmentProblem: the family is not known, or a key is missing.
    """
    family = str(config.get("model_type"))
    if family not in KNOWN_FAMILIES:
        known = ", ".join(sorted(KNOWN_FAMILIES))
        raise EnvironmentProblem(
            code="M303",
            message=f"{where}: the tensors of model_type {family!r} cannot be told from the config alone",
            hint=f"give a folder with .safetensors files; known are {known}",
        )
    try:
        tensors = tuple(Tensor(name, "BF16", shape) for name, shape in family_tensors(config))
    except KeyError as error:
        raise _missing(where, error) from error
    return _shape(config, tensors, where, source=source)


def _shape(config: Mapping[str, Any], tensors: tuple[Tensor, ...], where: str, *, source: str) -> ModelShape:
    try:
        heads, hidden, layers = (
            int(config[key]) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers")
        )
        window, windowed = _window(config, layers)
        names = {tensor.name.rpartition("layers.0.")[2] for tensor in tensors if ".layers.0." in tensor.name}
        return ModelShape(
            architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
            family=str(config.get("model_type", "unknown")),
            hidden_size=hidden,
            intermediate_size=int(config.get("intermediate_size") or 4 * hidden),
            layers=layers,
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab_size=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            max_positions=config.get("max_position_embeddings"),
            tensors=tensors,
            qk_norm="self_attn.q_norm.weight" in names,
            norms_per_layer=max(1, sum(name.count(".") == 1 and "norm" in name for name in names)),
            window=window,
            windowed_layers=windowed,
            source=source,
        )
    except KeyError as error:
        raise _missing(where, error) from error


def _missing(where: str, error: KeyError) -> EnvironmentProblem:
    return EnvironmentProblem(code="M303", message=f"{where} has no {error}; Luthier plans for decoder language models")


def _window(config: Mapping[str, Any], layers: int) -> tuple[int | None, int]:
    """(tokens of the sliding window, layers that have it) as the families of `families.py` read their configs."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return None, 0
    types = config.get("layer_types")
    if types:
        count = sum(kind == "sliding_attention" for kind in types)
    elif config.get("model_type") == "gemma3_text":
        pattern = int(config.get("sliding_window_pattern") or 6)
        count = layers - layers // pattern
    elif config.get("model_type") == "gemma2":
        count = (layers + 1) // 2
    else:
        count = layers
    return (int(window), count) if count else (None, 0)


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
