"""Communication between devices: DDP copies, or sharded weights (FSDP2, ZeRO-3).

    DDP      all-reduce of the gradients, once a step: 2 (N - 1) / N of their bytes over each link
    sharded  all-gather of the weights forward and backward, and reduce-scatter of the gradients of trained weights,
             in every micro-batch: (N - 1) / N of the bytes each (arXiv:1910.02054)

Gathers and reductions of one layer run beside the compute of another: a step takes at least the communication,
and a stated share of it stays visible. The exchange of masters' gradients comes after the backward pass
(`train/masters.py`) and is not hidden.
"""

from __future__ import annotations

from luthier.plan.devices import Accelerator
from luthier.plan.efficiency import Efficiency
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.plan.states import weight_bytes

__all__ = ["HOST_DEVICES", "NETWORK", "exchange_seconds"]

HOST_DEVICES = 8
"""More devices than that are taken to be on several hosts."""
NETWORK = 50e9
"""Bytes a second of one device to other hosts: one 400 Gbit/s adapter for each. A stated assumption, not measured."""


def exchange_seconds(
    sizes: Sizes, setting: Setting, device: Accelerator, *, compute: float, table: Efficiency
) -> float:
    """Seconds of a step beyond `compute` that communication takes."""
    if setting.world == 1:
        return 0.0
    bandwidth = (device.link if setting.world <= HOST_DEVICES else min(device.link, NETWORK)) * table.link
    part = (setting.world - 1) / setting.world
    if not setting.sharded:
        return 2.0 * part * 4.0 * sizes.trainable / bandwidth
    weights = weight_bytes(sizes, setting, table)
    gathers = 2.0 * part * weights["base"]
    if sizes.adapters:  # whole everywhere, averaged in fp32 once a step
        once = 2.0 * part * 4.0 * sizes.trainable / bandwidth
        seconds = setting.accumulate * gathers / bandwidth
        return once + max(table.exposed_communication * seconds, seconds - compute)
    reduces = part * 4.0 * sizes.trainable  # gradients are reduced in fp32
    seconds = setting.accumulate * (gathers + reduces) / bandwidth
    return max(table.exposed_communication * seconds, seconds - compute)
