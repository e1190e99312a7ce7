"""The types of weights a file can have, and how far each may be from what it rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "K_QUANTS", "TYPES", "WeightType", "block_error"]

BLOCK = 32
"""Weights that share a scale, in all of the block types here."""


@dataclass(frozen=True, slots=True)
class WeightType:
    """One type of weights."""

    name: str
    """As users write it: `q8_0`."""
    file_type: str
    """Name in `gguf.LlamaFileType`."""
    bits: float
    """Of a weight, scales included."""
    steps: float | None = None
    """Largest error of a weight in a block, as a share of the block's largest magnitude; None: no blocks."""

    @property
    def ggml(self) -> Any:
        """The member of `gguf.GGMLQuantizationType`."""
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType[self.name.upper()]


# A block stores round(x / d). Q8_0: d = max|x| / 127, so half a step is max / 254. Q4_0, Q5_0: d = max / 8 and / 16,
# and codes stop one short on the side opposite to the largest value: a whole step there. Q4_1, Q5_1: (max - min) / 15
# and / 31, and max - min is at most 2 max|x|. Scale and minimum are float16 themselves: each moves a
# value by up to 2^-11 of it.
TYPES = {
    item.name: item
    for item in (
        WeightType("f32", "ALL_F32", 32.0),
        WeightType("f16", "MOSTLY_F16", 16.0),
        WeightType("bf16", "MOSTLY_BF16", 16.0),
        WeightType("q8_0", "MOSTLY_Q8_0", 8.5, 1 / 254),
        WeightType("q5_1", "MOSTLY_Q5_1", 6.0, 1 / 31),
        WeightType("q5_0", "MOSTLY_Q5_0", 5.5, 1 / 16),
        WeightType("q4_1", "MOSTLY_Q4_1", 5.0, 1 / 15),
        WeightType("q4_0", "MOSTLY_Q4_0", 4.5, 1 / 8),
    )
}
K_QUANTS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
"""Made by llama.cpp's own `llama-quantize`, where a user has it."""

_PLAIN_ERROR = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}
_SCALE_ROUNDING = 3 * 2.0**-11
_TINY = 2.0**-24
"""Below float16's smallest number nothing is kept."""


def block_error(values: NDArray[np.float32], kind: WeightType) -> NDArray[np.float32]:
    """Largest error that rounding alone explains, for each weight.

    Args:
        values: (rows, columns), columns a multiple of 32 for block types.

    Returns:
        Of the shape of `values`.
    """
    if kind.steps is None:
        return np.abs(values) * np.float32(_PLAIN_ERROR[kind.name]) + np.float32(_TINY if kind.name == "f16" else 0.0)
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1, keepdims=True) * np.float32(kind.steps + _SCALE_ROUNDING) + np.float32(_TINY)
    return np.broadcast_to(largest, blocks.shape).reshape(values.shape)
