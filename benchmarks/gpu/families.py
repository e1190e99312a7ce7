"""Small models of every family that the engine replaces, and documents for them: for parity on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.gpu.models import shape
from luthier.data.types import Example, RowRef

_SMALL: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 48}
STD = {"float32": 0.15, "bfloat16": 0.03}
"""In fp32 large enough that attention is far from uniform; in bf16 such weights amplify roundings from layer to layer
(plain transformers itself is 5e-2 off), so they are smaller."""
TRUE_STD = {"float32": 0.02, "bfloat16": 0.02}


@dataclass(frozen=True)
class Family:
    """A model to compare, and how exactly."""

    name: str
    kind: str
    settings: dict[str, Any] = field(repr=False)
    std: Mapping[str, float] = field(default_factory=lambda: STD)
    """Of the matrices, by the dtype that is tested."""
    reference: str = "float64"
    methods: tuple[str, ...] = ("full", "lora")
    documents: tuple[int, ...] = (90, 17, 130, 64)
    """Tokens of the documents of the one batch."""


def _small(name: str, kind: str, **settings: Any) -> Family:
    return Family(name, kind, {**_SMALL, **settings})


FAMILIES = (
    _small("llama", "llama"),
    _small("llama-bias-tied", "llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    _small("qwen2", "qwen2"),
    _small("qwen3", "qwen3"),
    _small("mistral", "mistral", sliding_window=None),
    _small("mistral-window", "mistral", sliding_window=48),
    _small("gemma", "gemma", tie_word_embeddings=True),
    _small("gemma3", "gemma3_text", tie_word_embeddings=True, query_pre_attn_scalar=32, **_MIXED),
    _small("phi3", "phi3", sliding_window=None),
    Family("llama-4bit", "llama", _SMALL, methods=("qlora", "qlora-dequantized")),
)
LARGE = (
    Family("smol135m", *shape("smol135m"), std=TRUE_STD, reference="float32", documents=(300, 90, 128)),
    Family("llama8b-2", *shape("llama8b", layers=2), std=TRUE_STD, reference="float32", documents=(300, 90, 128)),
)
"""SmolLM2's shape whole, and two layers of Llama-3.1-8B's width; on a GPU."""


def documents(lengths: Sequence[int], vocab_size: int, *, seed: int) -> list[Example]:
    """Documents of these lengths; about the last 60% of each are trained, with weights other than 1 among them."""
    chooser = np.random.default_rng(seed)
    found = []
    for number, n in enumerate(lengths):
        weights = np.where(np.arange(n) >= max(1, int(0.4 * n)), 1.0, 0.0).astype(np.float32)
        weights[-1] = 0.5
        ids = chooser.integers(4, vocab_size - 1, n)
        found.append(Example(ids=ids, weights=weights, ref=RowRef("parity", number + 1)))
    return found
