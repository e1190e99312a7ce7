"""A merged folder -> one GGUF file. One weight is in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.export.gguf.families import family_of
from luthier.export.gguf.hyperparameters import write_hyperparameters
from luthier.export.gguf.tensors import ROPE_FACTORS, Weights, rope_factors
from luthier.export.gguf.types import BLOCK, TYPES, WeightType, block_error
from luthier.export.gguf.vocabulary import write_vocabulary
from luthier.runtime.atomic import explain_os_error
from luthier.runtime.console import progress
from luthier.runtime.errors import RunFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Written", "write_gguf"]

_EMBEDDINGS = ("token_embd.weight", "output.weight")


@dataclass(slots=True)
class Written:
    """What is in the file."""

    weights: Weights
    types: dict[str, str]
    """Type of each weight, by its name in the file."""
    notes: list[str] = field(default_factory=list)


def write_gguf(folder: Path, file: Path, kind: WeightType, *, name: str) -> Written:
    """Write the file; every rounded weight is compared with the original on the way.

    Matrices get `kind`; vectors stay in float32 (as llama.cpp expects); embedding and head of block types smaller than
    8 bits get Q8_0, for every token's row is read by itself and small models suffer most there. A matrix whose
    rows are no multiple of 32 gets F16.

    Args:
        folder: Merged model in transformers' format.
        file: Written here; the caller keeps it only if it answers alike (`export.py`).
        kind: Of the matrices.
        name: Of the model, for people.

    Raises:
        RunFailed: a model that llama.cpp would not run as transformers does, or a weight that was rounded wrongly.
        EnvironmentProblem: it cannot be written.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    family = family_of(config)
    written = Written(Weights(folder, config, family), {})
    try:
        _write(written, file, kind, name=name, tokenizer=tokenizer)
    except OSError as error:
        raise explain_os_error(error, file) from error
    return written


def _write(written: Written, file: Path, kind: WeightType, *, name: str, tokenizer: Any) -> None:
    from gguf import GGUFWriter, LlamaFileType

    weights = written.weights
    names = weights.names()
    shapes = {other: shape for _, other, shape in names}
    writer = GGUFWriter(file, weights.family.arch)
    writer.add_name(name)
    writer.add_type("model")
    writer.add_file_type(int(LlamaFileType[kind.file_type]))
    writer.add_quantization_version(2)
    written.notes += write_hyperparameters(writer, weights.config, weights.family)
    write_vocabulary(writer, tokenizer, rows=shapes["token_embd.weight"][0])
    factors = rope_factors(weights.config)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for _, other, shape in names:
        chosen = _type_of(other, shape, kind)
        written.types[other] = chosen.name
        raw = _stored_shape(shape, chosen)
        writer.add_tensor_info(
            other, raw, np.dtype(_dtype(chosen)), int(np.prod(raw)) * _dtype(chosen)().itemsize, chosen.ggml
        )
    odd = [name for name, stored in written.types.items() if stored == "f16" and kind.steps is not None]
    if odd:
        written.notes.append(f"{len(odd)} matrices have rows of no multiple of {BLOCK}: written as f16 ({odd[0]}, ...)")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    with progress("write weights", len(names), "weights") as bar:
        for own, other, _ in names:
            values = weights.values(own)
            stored, back = _rounded(values, TYPES[written.types[other]])
            _require_near(other, values, back, TYPES[written.types[other]])
            writer.write_tensor_data(stored)
            bar.advance()
    writer.close()


def _type_of(name: str, shape: tuple[int, ...], kind: WeightType) -> WeightType:
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return TYPES["f32"]
    if kind.steps is None:
        return kind
    if shape[-1] % BLOCK:
        return TYPES["f16"]
    return TYPES["q8_0"] if name in _EMBEDDINGS and kind.bits < 8 else kind


def _stored_shape(shape: tuple[int, ...], kind: WeightType) -> tuple[int, ...]:
    if kind.name in {"f32", "f16"}:
        return shape
    from gguf import quant_shape_to_byte_shape

    return tuple(quant_shape_to_byte_shape(shape, kind.ggml))


def _dtype(kind: WeightType) -> Any:
    return {"f32": np.float32, "f16": np.float16}.get(kind.name, np.uint8)


def _rounded(values: NDArray[np.float32], kind: WeightType) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """As stored, and as a reader sees it."""
    from gguf import dequantize, quantize

    if kind.name == "f32":
        return values, values
    if kind.name == "f16":
        stored = values.astype(np.float16)
        return stored, stored.astype(np.float32)
    stored = quantize(values, kind.ggml)
    return stored, dequantize(stored, kind.ggml).reshape(values.shape)


def _require_near(name: str, values: NDArray[np.float32], back: NDArray[np.float32], kind: WeightType) -> None:
    error = np.abs(values - back)
    allowed = block_error(values, kind)
    if not bool((error <= allowed).all()):  # a NaN or an infinity is caught as well
        worst = float(np.nan_to_num(error - allowed, nan=np.inf).max())
        raise RunFailed(
            code="X617", message=f"{name} as {kind.name} is off by {worst:.3g} more than rounding explains",
            hint="numbers beyond float16's 65,504 need f32 or bf16; else please report this",
        )  # fmt: skip
