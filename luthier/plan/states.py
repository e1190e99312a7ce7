"""Bytes of weights, gradients, masters and optimizer states: parameters times bytes, by storage and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.plan.efficiency import EFFICIENCY, Efficiency
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.recipe.optimizers import state_per_element

__all__ = [
    "BUCKET_BYTES", "NF4_BYTES", "OWN_UPDATES", "PACKED_BYTES", "TRAVELLING", "gradient_bytes", "held_weights",
    "master_bytes", "optimizer_bytes", "weight_bytes",
]  # fmt: skip

PACKED_BYTES = 0.5 + 1 / 64
"""A 4-bit value and its share of an 8-bit scale per 64: what is sharded and gathered (`model/packed.py`)."""
NF4_BYTES = PACKED_BYTES + 4 / 256 / 64
"""A 4-bit value, an 8-bit scale per 64 values, an fp32 scale per 256 scales (QLoRA, arXiv:2305.14314)."""
ADAM_BYTES = 8
"""Two fp32 moments."""
COLLECTED_BYTES = 2 << 30
"""`train/masters.py:COLLECTED_BYTES`."""
BUCKET_BYTES = 512 << 20
"""`train/masters.py:BUCKET_BYTES`: fp32 copies of 16-bit gradients that an optimizer gets at a time."""

OWN_UPDATES = ("adamw_torch_fused", "adamw_8bit")
"""Optimizers that take 16-bit gradients as they are: one kernel (`train/master_adamw.py`, `train/adamw8.py`). On a GPU
they update there what is in host memory."""
TRAVELLING = 3 * (32 << 20)
"""Elements of masters that are on a GPU at a time for that (`train/round_trip.py`: `IN_FLIGHT` + 1 pieces)."""


def weight_bytes(sizes: Sizes, setting: Setting, table: Efficiency = EFFICIENCY) -> dict[str, int]:
    """Bytes of the model's weights by part.

    - `base`: stored parameters x bytes of the compute type; linear layers of the decoder layers in nf4 or, for fp8,
      one e4m3 copy for each of the two products with an fp32 scale a row (2 bytes a weight).
    - `unpacked`: for nf4_dequantized the 16-bit copy.
    - `adapters`: for plain and unpacked bases on a GPU the rows and columns that the extended matrices
      (N + P, K + P) have more than W, P the ranks padded to 64; they hold A and B. Else A and B.
    - `modules_to_save`: PEFT trains a copy and keeps the original.
    """
    layers, base, dtype_bytes = sizes.shape.layers, setting.base, setting.dtype_bytes
    plain = sizes.parameters * dtype_bytes
    outside = (sizes.parameters - sizes.linear) * dtype_bytes
    parts = {"base": plain, "unpacked": 0, "adapters": 0, "modules_to_save": 0}
    if base in ("nf4", "nf4_dequantized"):
        packed = round(sizes.linear * NF4_BYTES)
        parts["base"] = outside + packed
        if base == "nf4_dequantized":
            parts["unpacked"] = sizes.linear * dtype_bytes
            parts["base"] -= 0 if table.dequantized_keeps_packed else packed
    elif base == "fp8":
        scales = sum(4 * (group.outputs + group.inputs) for group in sizes.groups) * layers
        copies = 2 * sizes.linear + scales
        parts["base"] = (plain if table.fp8_keeps_base else outside) + copies
    if sizes.adapters:
        padding = sum(group.padding for group in sizes.groups) * layers
        parts["adapters"] = dtype_bytes * (padding if setting.wide else sizes.adapter_parameters)
        parts["modules_to_save"] = sizes.trained_base * dtype_bytes
    return parts


def held_weights(sizes: Sizes, setting: Setting, table: Efficiency = EFFICIENCY) -> dict[str, int]:
    """Bytes of the weights one device holds between layers: `shards` (all of them without sharding) and `whole`.

    Under shards (FSDP2, ZeRO-3) each of N devices has 1/N of stored weights (arXiv:1910.02054, section 5.3); of fp8
    both 8-bit copies with their scales, and no 16-bit base (`fast/decoder/fp8_shards.py`). Whole on each stay the
    scales of nf4's scales (0.0002 bytes a weight), and copies in `modules_to_save`, which FSDP2 leaves whole with the
    adapters (`train/distributed/fsdp.py`).
    """
    parts = weight_bytes(sizes, setting, table)
    stored, saved = parts["base"] + parts["unpacked"], parts["modules_to_save"]
    if not setting.sharded:
        return {"shards": stored + saved, "whole": 0}
    whole = 0
    if setting.base in ("nf4", "nf4_dequantized"):
        whole = round(sizes.linear * (NF4_BYTES - PACKED_BYTES))
    elif setting.base == "fp8" and table.fp8_keeps_base:
        stored -= sizes.linear * setting.dtype_bytes
    divided = stored - whole
    if setting.deepspeed:
        divided, saved = divided + saved, 0
    return {"shards": -(-divided // setting.weight_parts), "whole": whole + saved}


def gradient_bytes(sizes: Sizes, setting: Setting) -> tuple[int, int]:
    """(bytes from one micro-batch to the next, bytes at the end of a backward pass) of all gradients.

    As `train/masters.py` keeps them: in fp32 4 bytes a trained parameter; in 16 bits, for one micro-batch a step on
    one device, as they come (2 bytes); else summed in fp32 (4), and while all of them take at most 2 GiB in 16 bits,
    those of one pass stand beside the sums until its end. FSDP2 leaves the shard's gradient in the compute type;
    DeepSpeed sums its partition in fp32, under ZeRO-3 in a buffer that is always there (its `stage3.py`:
    `grad_partitions_flat_buffer`).
    """
    if setting.deepspeed:
        always = setting.accumulate > 1 or setting.sharded
        return (4 * sizes.trainable if always else 0), 4 * sizes.trainable
    if setting.dtype_bytes == 4:
        return (4 * sizes.trainable if setting.accumulate > 1 else 0), 4 * sizes.trainable
    live = setting.dtype_bytes * sizes.trainable
    if setting.accumulate == 1 and (setting.world == 1 or (setting.sharded and not sizes.adapters)):
        return 0, live
    sums = 4 * sizes.trainable
    return (sums if setting.accumulate > 1 else 0), sums + (live if live <= COLLECTED_BYTES else 0)


def master_bytes(sizes: Sizes, dtype_bytes: int) -> int:
    """An fp32 copy of every trained parameter that is held in 16 bits (`train/masters.py`)."""
    return 4 * sizes.trainable if dtype_bytes < 4 else 0


def optimizer_bytes(sizes: Sizes, optim: str, optim_args: Mapping[str, Any] | None = None) -> int:
    """States of `train.optim`, by the formulas of `recipe/optimizers.py`.

    8-bit optimizers keep fp32 moments in tensors of fewer than 4,096 elements. Adafactor (arXiv:1804.04235, as
    transformers runs it, no first moment): an fp32 row and column a matrix, all of a vector. Muon: 4 bytes a hidden
    matrix, AdamW's 8 elsewhere. Pages of paged optimizers can leave the device; they are counted as if none did.
    """
    large, small = state_per_element(optim, optim_args)
    if optim == "adafactor":
        return 4 * (sizes.factored_rows + sizes.trained_vectors)
    if optim == "muon":
        return ADAM_BYTES * sizes.trainable - (ADAM_BYTES - 4) * sizes.hidden_matrices
    return round((sizes.trainable - sizes.small_trained) * large + sizes.small_trained * small)
