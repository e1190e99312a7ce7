"""Bytes that are on a device only while a layer runs: weights of other devices, and the buffers of their exchange.

W is a decoder layer as stored, R embeddings and head, b bytes of the compute type. FSDP2 (torch's `fully_shard`,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html; `_fsdp_collectives.py: foreach_reduce`) gathers
the next layer while one runs, and keeps the root (embeddings, last norm, head) whole from its forward to its backward:

    loss        R + W; with `reshard_after_forward: false` R + all layers
    backward    R + 2 W; a trained layer's gradient (b) and the fp32 buffer of the one reduced before (4); R's gradient
    end         R + W, and the same of the lowest layer
    root        R's gradient (b) and its fp32 buffer (4), when R's weights are gone

DeepSpeed (runtime/zero/config.py and stage3.py of 0.19; arXiv:1910.02054), in elements:

    zero2       one bucket of gradients in fp32 (`reduce_bucket_size`, d^2), made at its full size
    zero3       the bucket; weights that live (`stage3_max_live_parameters`, 1e9, or the largest module) and are fetched
                ahead (`stage3_prefetch_bucket_size`, 0.9 d^2); the gradient of a layer and of R

d is the hidden size: what transformers' Trainer, and Luthier, write for `auto` (DeepSpeed's own defaults are 5e8, 5e7).
A configuration of the user's own (`distributed.deepspeed_config`) may say other sizes; these are not looked at.
"""

from __future__ import annotations

from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.plan.states import PACKED_BYTES

__all__ = ["LIVE_PARAMETERS", "gathered_bytes", "layer_bytes", "root_bytes"]

LIVE_PARAMETERS = 1_000_000_000
"""Default of DeepSpeed 0.19, in elements."""
REDUCE_BYTES = 4
"""Gradients are reduced in fp32 (`train/distributed/fsdp.py`)."""


def layer_bytes(sizes: Sizes, setting: Setting) -> int:
    """Bytes of one decoder layer as it is gathered: packed 4-bit values, two 8-bit copies, or the compute type."""
    each = {"nf4": PACKED_BYTES, "fp8": 2.0}.get(setting.base, float(setting.dtype_bytes))
    scales = sum(4 * (group.outputs + group.inputs) for group in sizes.groups) if setting.base == "fp8" else 0
    return round(sizes.linear_per_layer * each) + scales


def root_bytes(sizes: Sizes, setting: Setting) -> int:
    """Bytes of embeddings and head, one matrix when they are tied."""
    return (sizes.head if sizes.shape.tied else 2 * sizes.head) * setting.dtype_bytes


def gathered_bytes(sizes: Sizes, setting: Setting) -> dict[str, int]:
    """By moment of a step (`memory.py`), and `root`, the reduction of the root's gradient after all others."""
    if setting.deepspeed:
        return dict.fromkeys(("loss", "backward", "end", "root"), _deepspeed(sizes, setting))
    if not setting.sharded:
        return dict.fromkeys(("loss", "backward", "end", "root"), 0)
    layer, root = layer_bytes(sizes, setting), root_bytes(sizes, setting)
    kept = 0 if setting.reshard else sizes.shape.layers * layer
    size = setting.dtype_bytes
    trains = not sizes.adapters
    gradient = sizes.linear_per_layer * (size + REDUCE_BYTES) if trains and sizes.trained_linear else 0
    ends = root // size if trains and (sizes.trained_head or sizes.trained_embedding) else 0
    backward = gradient + ends * size
    return {
        "loss": root + max(layer, kept),
        "backward": root + max(2 * layer, kept) + backward,
        "end": root + layer + backward,
        "root": ends * (size + REDUCE_BYTES),
    }


def _deepspeed(sizes: Sizes, setting: Setting) -> int:
    size, square = setting.dtype_bytes, sizes.shape.hidden_size**2
    bucket = REDUCE_BYTES * square
    if not setting.sharded:
        return bucket
    largest = max([sizes.head, *(group.parameters for group in sizes.groups)])
    live = min(sizes.parameters, max(LIVE_PARAMETERS, largest) + round(0.9 * square)) * size
    gradient = sizes.linear_per_layer if sizes.trained_linear else 0
    gradient += sizes.head if sizes.trained_head or sizes.trained_embedding else 0
    return bucket + live + gradient * size
