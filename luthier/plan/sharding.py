"""Communication between devices, in seconds of a step that nothing hides. W stored weights, N devices, p trained.

    ddp      all-reduce of fp32 gradients, once a step after the backward pass: 2 (N - 1) / N x 4 p over each link
    fsdp2    all-gather of each layer forward and again backward (once with `reshard_after_forward: false`), of
             embeddings and head once, and a reduce-scatter of fp32 gradients, in every micro-batch: (N - 1) / N of
             the bytes each; adapters as under ddp (arXiv:1910.02054; torch's fully_shard)
    R copies of shards (`dp_replicate_size`): as fsdp2 over the N / R devices of a copy; then an all-reduce of the fp32
             gradients of shards between copies, in every micro-batch: 2 (R - 1) / R x 4 p R / N, of each device over
             its own adapter where there are several hosts
    zero1    all-reduce of fp32 gradients once a step, all-gather of what was updated
    zero2    all-reduce of fp32 gradients in every micro-batch, not overlapped; all-gather of what was updated once a
             step (runtime/zero/config.py: `use_multi_rank_bucket_allreduce`, `overlap_comm`)
    zero3    as fsdp2, everything gathered twice, adapters' gradients reduced as well; nothing hidden, and on fast links
             its hooks take longer than the bytes (`ZERO3_TENSOR`)
    sequences shared by S devices (arXiv:2309.14509): all-to-all of q, k, v and of attention's output in each layer,
             (S - 1) / S x T / S x (2 q + 2 kv) elements forward, as many backward, forward once more where a layer is
             recomputed; a layer waits for each

Gathers and reductions of one layer run beside the compute of another: a step takes at least the communication, and a
stated share of it stays visible. They also pass through the device's own memory, which the layer at work wants as well:
a gather of w bytes 2 w / N in, w received, 2 w out; a reduction of a parameter 6 bytes in, 4 out, 10 / N of its shard.
With `offload: all` shards come through the host's link first, at the same time.
"""

from __future__ import annotations

from luthier.plan.activations import exchanged_elements
from luthier.plan.devices import Accelerator
from luthier.plan.efficiency import Efficiency
from luthier.plan.gathered import layer_bytes, root_bytes
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes

__all__ = ["exchange_seconds", "forward_exchange_seconds"]

ZERO_SHOWN = 2.5
"""Seconds that the exchange of ZeRO-1 and ZeRO-2 adds to a step, in times of the links' own: buckets are filled and
emptied. From one measured step (`benchmarks/results/distributed_h200.md`, call F)."""
ZERO3_LAYER, ZERO3_TENSOR = 3.5e-3, 0.35e-3
"""Seconds that ZeRO-3's hooks take for a decoder layer and for each tensor of it, in both passes of a micro-batch:
Python gathers and lets go of them one by one, and the device waits. From three measured steps (call F there), which it
gives within 2%; of another CPU nothing is known."""


def exchange_seconds(
    sizes: Sizes, setting: Setting, device: Accelerator, *, compute: float, tokens: float, again: int,
    table: Efficiency, forward_passes: float = 0.0,
) -> float:  # fmt: skip
    """Seconds of a step beyond `compute` that communication takes.

    Args:
        sizes: of model and method.
        setting: how devices share the work.
        device: with its links.
        compute: seconds of the step's work, which exchanges can hide behind.
        tokens: of a micro-batch on one device.
        again: decoder layers that are recomputed as a whole.
        table: constants.
        forward_passes: passes without gradients in a micro-batch.
    """
    if setting.world == 1:
        return 0.0
    link = _link(setting.world, setting, device, whole_hosts=True) * table.link
    part = (setting.world - 1) / setting.world
    size, strategy = setting.dtype_bytes, setting.way.strategy
    shared = setting.accumulate * _sequence_seconds(
        sizes, setting, device, tokens=tokens, again=again, table=table, forward_passes=forward_passes
    )
    if strategy == "ddp":
        return shared + 2.0 * part * 4.0 * sizes.trainable / link
    group = setting.shard_group
    if strategy in ("zero1", "zero2"):
        reduced = (setting.accumulate if strategy == "zero2" else 1) * 2.0 * part * 4.0 * sizes.trainable
        return shared + ZERO_SHOWN * (reduced + part * size * sizes.trainable) / link
    gathered = _gathered_a_micro_batch(sizes, setting, forward_passes)
    divided = 0 if sizes.adapters and strategy == "fsdp2" else sizes.trainable
    within = _link(group, setting, device, whole_hosts=True) * table.link
    seconds = (group - 1) / group * (gathered + 4.0 * divided) / within
    if setting.offload == "all":
        moved = (gathered + size * divided) / group
        seconds = max(seconds, moved / device.host_link)
    seconds += _between_copies(setting, 4.0 * divided / group, device, table)
    copies = gathered * (3.0 + 2.0 / group) + divided * (10.0 + 10.0 / group)
    seconds, copying = setting.accumulate * seconds, setting.accumulate * copies / device.bandwidth
    if strategy == "zero3":
        hooks = setting.accumulate * (1.0 + forward_passes / 2) * _hook_seconds(sizes, setting)
        return shared + copying + max(seconds, hooks)
    once = 0.0 if divided else 2.0 * part * 4.0 * sizes.trainable / link
    return shared + once + copying + max(table.exposed_communication * seconds, seconds - compute)


def forward_exchange_seconds(
    sizes: Sizes, setting: Setting, device: Accelerator, *, compute: float, tokens: float, table: Efficiency
) -> float:
    """Seconds beyond `compute` that communication takes in one pass without gradients over `tokens` tokens a device."""
    if setting.world == 1:
        return 0.0
    layers, size = sizes.shape.layers, setting.dtype_bytes
    link = _link(setting.sequence_parallel, setting, device, whole_hosts=False) * table.link
    count = setting.sequence_parallel
    shared = layers * (count - 1) / count * tokens * exchanged_elements(sizes, setting) * size / link
    if not setting.sharded:
        return shared
    gathered = float(layers * layer_bytes(sizes, setting) + root_bytes(sizes, setting))
    group = setting.shard_group
    wire = (group - 1) / group * gathered
    seconds = wire / (_link(group, setting, device, whole_hosts=True) * table.link)
    if setting.offload == "all":
        seconds = max(seconds, gathered / group / device.host_link)
    copying = gathered * (3.0 + 2.0 / group) / device.bandwidth
    return shared + copying + max(table.exposed_communication * seconds, seconds - compute)


def _hook_seconds(sizes: Sizes, setting: Setting) -> float:
    """Of ZeRO-3 in one forward and one backward pass: matrices (of an fp8 base a vector a group), two norms, A and B of
    adapters and magnitudes of DoRA."""
    tensors = 2 + sum(1 if setting.base == "fp8" else group.members for group in sizes.groups)
    tensors += sum(group.members * (3 if sizes.dora else 2) for group in sizes.groups if group.rank)
    return sizes.shape.layers * (ZERO3_LAYER + ZERO3_TENSOR * tensors)


def _between_copies(setting: Setting, shard_bytes: float, device: Accelerator, table: Efficiency) -> float:
    """Seconds of the all-reduce of a micro-batch's gradients between the copies of a shard."""
    count = setting.way.dp_replicate
    if count == 1 or not shard_bytes:
        return 0.0
    # Each shard has a ring of its own. Within a host all go through its links, else each through its own adapter.
    link = device.link if setting.world <= setting.host else min(device.link, device.network)
    return 2.0 * (count - 1) / count * shard_bytes / (link * table.link)


def _gathered_a_micro_batch(sizes: Sizes, setting: Setting, forward_passes: float) -> float:
    layers, root = float(sizes.shape.layers * layer_bytes(sizes, setting)), float(root_bytes(sizes, setting))
    if setting.way.strategy == "zero3":
        return (2.0 + forward_passes) * (layers + root)
    return (2.0 if setting.reshard else 1.0) * layers + root + forward_passes * (layers + root)


def _link(world: int, setting: Setting, device: Accelerator, *, whole_hosts: bool) -> float:
    """Bytes a second and device of an exchange among `world` of them."""
    if world <= setting.host:
        return device.link
    return min(device.link, device.network * (setting.host if whole_hosts else 1))


def _sequence_seconds(
    sizes: Sizes, setting: Setting, device: Accelerator, *, tokens: float, again: int, table: Efficiency,
    forward_passes: float,
) -> float:  # fmt: skip
    """Of the all-to-alls of one micro-batch; every device of the group sends to every other."""
    count = setting.sequence_parallel
    if count == 1:
        return 0.0
    passes = (1.0 + forward_passes) * sizes.shape.layers + again + sizes.backward_layers
    elements = passes * exchanged_elements(sizes, setting)
    kept = setting.whole_layers(sizes.shape.layers) - max(sizes.lowest_layer, setting.attending(sizes.shape.layers))
    elements -= max(0, kept) * sizes.shape.query  # attention's output does not travel again
    sent = (count - 1) / count * tokens * elements * setting.dtype_bytes
    return sent / (_link(count, setting, device, whole_hosts=False) * table.link)
