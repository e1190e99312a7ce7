"""Bytes that are on a device only while a layer runs: weights of other devices, and the buffers of their exchange.

W is a decoder layer as stored, R embeddings and head, b bytes of the compute type. FSDP2 (torch's `fully_shard`,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html; `_fsdp_collectives.py: foreach_reduce`) gathers
the next layer while one runs, and keeps the root (embeddings, last norm, head) whole from its forward to its backward:

    loss        R + W; with `reshard_after_forward: false` R + all layers
    backward    R + 2 W; a trained layer's gradient (b) and the fp32 buffer of the one reduced before (4); R's gradient
    end         R + W, and the same of the lowest layer
    root        R's gradient (b) and its fp32 buffer (4), when R's weights are gone

DeepSpeed 0.19 (runtime/zero; arXiv:1910.02054), B its bucket in fp32 (`reduce_bucket_size`, d^2), made at full size:

    zero2       B; in the backward pass the gradients as under zero3; in the step one tensor's part in fp64, for the
                norm (8), and of weights in fp32 a copy of this device's gradients (`stage_1_and_2.py: step`)
    zero3       B, and the root from its forward to the end of its backward (`zero.py: _whole_in_the_root`)
      loss      the last layers, which are not freed between their two passes: those of which the next use is less than
                `stage3_max_reuse_distance` (1e9 elements) away (`partitioned_param_coordinator.py:
                __params_to_release`), so ceil(1e9 / W), where packed 4-bit values count as integers of 4 bytes, and
                packed copies of an fp8 base too; and a matrix of d^2, fetched ahead for the next layer
                (`stage3_prefetch_bucket_size`, 0.9 d^2). One layer more lies there before the logits do
      backward  those, or two layers; of an fp8 base two layers more, for its matrices are four vectors a layer, so that
                the six fetches ahead before the first layer is let go of bring two whole layers. What is gathered lies
                in one buffer first and is then copied into each weight (`partition_parameters.py:
                AllGatherCoalescedHandle.wait`); a trained layer's gradients (b), and one of them in fp32 (4:
                `stage3.py: __avg_scatter_grads`); the head's own gradient, in fp32 as well
      end       two layers, the same of the lowest one; a tied head's gradient, which waits for the embeddings'
      root      that gradient and its fp32 copy; or, in the step, when nothing is gathered, the fp32 copy of a group of
                this device's gradients (`sub_group_size`, 1e9: `stage3.py: _prepare_fp32_grad_for_sub_group`)

What both hold was read off two gloo processes; zero3's gathers are tested there (tests/train/test_zero_memory.py). d is
the hidden size: what transformers' Trainer, and Luthier, write for `auto` (DeepSpeed's own defaults are 5e8, 5e7). A
configuration of the user's own (`distributed.deepspeed_config`) may say other sizes; these are not looked at.
"""

from __future__ import annotations

from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.plan.states import PACKED_BYTES

__all__ = ["REUSE_DISTANCE", "SUB_GROUP", "gathered_bytes", "layer_bytes", "root_bytes"]

REUSE_DISTANCE = 1_000_000_000
"""Default of `stage3_max_reuse_distance` in DeepSpeed 0.19, in elements."""
SUB_GROUP = 1_000_000_000
"""Default of `sub_group_size` in DeepSpeed 0.19: elements of one device's part that its step updates at a time."""
REDUCE_BYTES = 4
"""Gradients are reduced in fp32 (`train/distributed/fsdp.py`)."""
WHOLE_BYTES = 4
"""Of an integer that packed values are seen as (`model/packed.py: WHOLE`): 1e9 elements are then nearly 8 times as many
weights of an nf4 base, twice as many of an fp8 base."""
NORM_BYTES = 8
"""DeepSpeed takes norms in fp64."""


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
        return _zero3(sizes, setting) if setting.sharded else _zero2(sizes, setting)
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


def _zero2(sizes: Sizes, setting: Setting) -> dict[str, int]:
    bucket = REDUCE_BYTES * sizes.shape.hidden_size**2
    early, late, root = _gradients(sizes, setting)
    mine = 0 if setting.offload != "none" else -(-sizes.trainable // setting.world)
    step = NORM_BYTES * min(mine, sizes.largest_trained) if setting.dtype_bytes < 4 else REDUCE_BYTES * mine
    return {"loss": bucket, "backward": bucket + early, "end": bucket + late, "root": bucket + max(root, step)}


def _zero3(sizes: Sizes, setting: Setting) -> dict[str, int]:
    size, square, root = setting.dtype_bytes, sizes.shape.hidden_size**2, root_bytes(sizes, setting)
    base, adapters = layer_bytes(sizes, setting), sizes.adapter_parameters // sizes.shape.layers
    layer, element = base + size * adapters, WHOLE_BYTES if setting.base in ("nf4", "fp8") else size
    kept = min(sizes.shape.layers, -(-REUSE_DISTANCE // (base // element + adapters)))
    bucket, ahead = REDUCE_BYTES * square, element * square
    early_ahead = 2 * layer if setting.base == "fp8" else ahead
    always = bucket + root
    early, late, last = _gradients(sizes, setting)
    mine = 0 if setting.offload != "none" else min(-(-sizes.trainable // setting.world), SUB_GROUP)
    return {
        "loss": always + kept * layer + ahead,
        "backward": always + max(kept, 2) * layer + early_ahead + early,
        "end": always + 2 * layer + ahead + late,
        "root": max(always + last, bucket + REDUCE_BYTES * mine),
    }


def _gradients(sizes: Sizes, setting: Setting) -> tuple[int, int, int]:
    """Bytes of whole gradients while the first layers are differentiated, while the last is, and after all."""
    if sizes.adapters:
        return 0, 0, 0
    size, layer = setting.dtype_bytes, 0
    if sizes.trained_linear:
        largest = max(group.parameters // group.members for group in sizes.groups)
        layer = sizes.linear_per_layer * size + largest * REDUCE_BYTES
    ends = sizes.head if sizes.trained_head or sizes.trained_embedding else 0
    if sizes.shape.tied:
        return layer + ends * size, layer + ends * size, ends * (size + REDUCE_BYTES)
    early = ends * (size + REDUCE_BYTES) if sizes.trained_head else 0
    return layer + early, layer, ends * (size + REDUCE_BYTES)
