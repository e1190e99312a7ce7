"""The weights of a merged folder, one at a time, as the file holds them; and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.export.gguf.families import Family
from luthier.runtime.errors import RunFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROPE_FACTORS", "Weights", "rope_factors", "weight_files"]

_NORM = re.compile(r"norm\.weight$")
_QUERY, _KEY = re.compile(r"\.q_proj\."), re.compile(r"\.k_proj\.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROPE_FACTORS = "rope_freqs.weight"


class Weights:
    """Names and values of the weights in a merged folder."""

    def __init__(self, folder: Path, config: Any, family: Family) -> None:
        self.folder, self.config, self.family = folder, config, family
        self._stored = {name: (file, shape) for file in weight_files(folder) for name, shape in _header(file)}
        if config.tie_word_embeddings and _HEAD in self._stored and self._is_copy(_HEAD, _EMBEDDING):
            del self._stored[_HEAD]

    def names(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name in transformers, name in the file, shape), in the order of the file.

        Raises:
            RunFailed: a weight that the family has no place for.
        """
        found = [(name, self._file_name(name), shape) for name, (_, shape) in sorted(self._stored.items())]
        unknown = [name for name, other, _ in found if other is None]
        if unknown:
            raise RunFailed(
                code="X614", message=f"weights without a place in a `{self.family.arch}` file: {unknown[:3]}",
                hint="serve the merged folder, or convert it with llama.cpp's script",
            )  # fmt: skip
        return sorted(((name, str(other), shape) for name, other, shape in found), key=lambda item: _order(item[1]))

    def values(self, name: str) -> NDArray[np.float32]:
        """One weight in float32, as the file holds it."""
        return self._turn(name, self.own(name))

    def own(self, name: str) -> NDArray[np.float32]:
        """One weight in float32, as transformers holds it."""
        from safetensors import safe_open

        file, _ = self._stored[name]
        with safe_open(file, framework="pt") as reader:
            array: NDArray[np.float32] = reader.get_tensor(name).float().numpy()
        return array

    def back(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A weight of the file as transformers holds it."""
        if self._heads(name):
            return _unpermute(values, self._heads(name))
        return values - np.float32(1.0) if self.family.shifted and _NORM.search(name) else values

    def _is_copy(self, name: str, of: str) -> bool:
        """A head stored beside the embedding it is tied to; transformers ties only if they are equal."""
        return of in self._stored and bool(np.array_equal(self.own(name), self.own(of)))

    def _turn(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._heads(name):
            return _permute(values, self._heads(name))
        return values + np.float32(1.0) if self.family.shifted and _NORM.search(name) else values

    def _heads(self, name: str) -> int:
        if not self.family.permuted:
            return 0
        if _QUERY.search(name):
            return int(self.config.num_attention_heads)
        return int(self.config.num_key_value_heads) if _KEY.search(name) else 0

    def _file_name(self, name: str) -> str | None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(item for item in MODEL_ARCH if MODEL_ARCH_NAMES[item] == self.family.arch)
        table = get_tensor_name_map(arch, int(self.config.num_hidden_layers))
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        return None if found is None else str(found)


def rope_factors(config: Any) -> NDArray[np.float32] | None:
    """What each rotary frequency is divided by, for Llama 3's scaling; (head width / 2,); None: nothing.

    The ratio of transformers' own frequencies without and with the scaling, so the formula is not repeated here.
    """
    parameters = config.rope_parameters
    if parameters.get("rope_type", "default") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    plain = float(parameters["rope_theta"]) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    factors: NDArray[np.float32] = (plain / scaled.double().numpy()).astype(np.float32)
    return factors


def _permute(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _unpermute(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def weight_files(folder: Path) -> list[Path]:
    """The files of its weights, by its index if it has one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    return [folder / "model.safetensors"]


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, tuple(entry["shape"])


def _order(name: str) -> tuple[int, int, str]:
    """Embeddings, layers in order, the rest: as readers expect to stream them."""
    layer = re.match(r"blk\.(\d+)\.", name)
    if layer:
        return 1, int(layer.group(1)), name
    return (0 if name.startswith("token_embd") else 2), 0, name
