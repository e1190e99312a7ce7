"""Host memory of the machines, and what moving states and weights through it costs (`distributed.offload`).

Masters and optimizer state stay in host memory. Our AdamW updates them on the GPU (`train/round_trip.py`): they go up
and come back, both ways at once. Others update there (ZeRO-Offload, arXiv:2101.06840, section 4): per trained parameter
of a device one gradient goes down and one weight comes back. With `all` the shards of weights are in host memory, too,
and go up before each gather (FSDP2's CPUOffloadPolicy; ZeRO-3's `offload_param`).

    optimizer   AdamW on a GPU: up and down 4 bytes and the state (8; 2 in 8 bits), over the device's link or, of all
                devices of a host, through its memory, whichever takes longer
                else: down 2 or 4 bytes (as gradients are summed), up 2; the update reads and writes host memory
    all         up 1/N of what each gather brings together, down the gradient of the shard, in every micro-batch; the
                gradients go up twice more, for norm and update

Bytes of one host, with n of the devices:

    processes    n x Python with torch and CUDA's libraries
    loading      n x the largest tensor, of which a process reads its rows; where values are needed before there are
                 shards (nf4, fp8, new tokens, rewards, DoRA, PiSSA, OLoRA, `modules_to_save`; ZeRO-3) n x the base;
                 of an fp8 base under ZeRO-3, which makes all partitions at once, n x its 8-bit copies as well
    states       n x the device's masters and optimizer state, where they are offloaded; of fp32 weights a copy, too
    weights      n x the device's shards of weights and their gradients, with `all`
    checkpoint   what is on its way to the disk: of n shards (FSDP2's, ZeRO's) twice a file of each, of whole weights
                 twice a file; of adapters under ZeRO masters and states besides, which process 0 puts together
    result       one file of the result that process 0 writes (`export.max_shard_size`)

Loading, checkpoint and result come one after the other: the host needs the largest of them beside the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.plan.devices import Accelerator
from luthier.plan.gathered import layer_bytes
from luthier.plan.setting import Setting, Way
from luthier.plan.sizes import Sizes
from luthier.plan.states import OWN_UPDATES, held_weights, master_bytes, optimizer_bytes
from luthier.recipe.names import takes_from_base
from luthier.recipe.optimizers import state_per_element
from luthier.recipe.schema import Recipe

__all__ = [
    "HOST_BANDWIDTH", "HOST_TRAFFIC", "SHARD_FILE", "WHOLE_FILE", "HostPlan", "estimate_host", "update_seconds",
    "values_first_of",
]  # fmt: skip

HOST_BANDWIDTH = 62e9
"""Bytes a second of a host's memory in updates on its CPU, of all processes. From one measured step: 8B full, two
processes of 16 cores each (`benchmarks/results/distributed_h200.md`, call E)."""
HOST_TRAFFIC = 139e9
"""Bytes a second that all devices of a host together bring from its memory and back, both ways added. From two measured
steps of two devices, which reach 135 and 143 (call G there); one device alone is bound by its own link. Of hosts with
more devices at work nothing was measured."""
PROCESS_BYTES = 3 << 30
"""A process with torch and CUDA's libraries on a GPU. Assumed, not measured."""
WHOLE_FILE, SHARD_FILE = 4 << 30, 1 << 30
"""`train/checkpoint.py: SHARD_BYTES` and `train/distributed/shards.py: FILE_BYTES`. Writing holds a file twice (whole
weights: 2.0 GiB for files of 1 GiB, measured), or once where its tensors are in host memory (shards: 1.1)."""
RESULT_BYTES = 5_000_000_000
"""`export.max_shard_size`, its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """Bytes of one host."""

    devices: int
    """Devices, and processes, of the fullest host."""
    processes: int
    loading: int
    states: int
    weights: int
    checkpoint: int
    result: int

    @property
    def total(self) -> int:
        """Most of it that is there at once."""
        return self.processes + self.states + self.weights + max(self.loading, self.checkpoint, self.result)

    @property
    def offloaded(self) -> int:
        """The total without the processes: what has to be free when they have started."""
        return self.total - self.processes

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        names = ("processes", "loading", "states", "weights", "checkpoint", "result")
        return {"devices": self.devices, "parts": {name: getattr(self, name) for name in names}, "total": self.total}


def host_devices(setting: Setting) -> int:
    """Devices of the fullest host."""
    return min(setting.world, setting.host)


def estimate_host(
    sizes: Sizes, setting: Setting, *, optim: str, optim_args: dict[str, Any] | None = None, cuda: bool = True,
    values_first: bool = False,
) -> HostPlan:  # fmt: skip
    """Host memory of a run. On a CPU what a device holds is in host memory as well and not counted again here; what is
    offloaded there stays where it is (`memory.py`).

    `values_first`: each process has the whole base in host memory before it is sharded (`values_first_of`).
    """
    count, parts = host_devices(setting), setting.trained_parts(sizes.adapters)
    states = master_bytes(sizes, setting.dtype_bytes), optimizer_bytes(sizes, optim, optim_args)
    offloaded = cuda and setting.moves_states(sizes.adapters)
    master = states[0] or 4 * sizes.trainable  # of fp32 weights, which have no master on a device
    own = -(-master // parts) + -(-states[1] // parts)
    shards = held_weights(sizes, setting)["shards"] if cuda and setting.offload == "all" else 0
    if shards and not sizes.adapters:
        shards += -(-sizes.trainable * setting.dtype_bytes // parts)
    saved = -(-(4 * sizes.trainable + states[1]) // parts)
    writers, file = (count, SHARD_FILE) if parts > 1 else (1, WHOLE_FILE)
    written = 2 * min(saved, file)
    if setting.deepspeed and sizes.adapters:
        saved = 4 * sizes.trainable + states[1]
        writers, written = 1, saved + 2 * min(saved, WHOLE_FILE)
    piece = max([sizes.head, *(group.parameters for group in sizes.groups)]) * setting.dtype_bytes
    if setting.sharded and values_first:
        piece = sizes.parameters * setting.dtype_bytes
        if setting.deepspeed and setting.base == "fp8":
            piece += sizes.shape.layers * layer_bytes(sizes, setting)
    result = (sizes.trainable if sizes.adapters else sizes.parameters) * setting.dtype_bytes
    return HostPlan(
        devices=count, processes=count * PROCESS_BYTES if cuda else 0, loading=count * piece,
        states=count * own if offloaded else 0, weights=count * shards, checkpoint=writers * written,
        result=min(result, RESULT_BYTES),
    )  # fmt: skip


def values_first_of(recipe: Recipe, way: Way) -> bool:
    """Shards of this recipe are cut from a base that each process has whole in host memory."""
    model, method = recipe.model, recipe.method
    packed = model.quantization in ("nf4", "fp8") or (model.quantization == "auto" and method.name == "qlora")
    from_base = method.use_dora or takes_from_base(method.init_lora_weights) or bool(method.modules_to_save)
    return bool(
        way.strategy == "zero3" or packed or model.new_tokens or recipe.objective.name == "reward"
        or (method.name in ("lora", "qlora") and from_base)
    )  # fmt: skip


def update_seconds(sizes: Sizes, setting: Setting, device: Accelerator, *, optim: str, update_bytes: float) -> float:
    """Seconds of the update of what is in host memory, with the way there and back.

    `update_bytes`: read and written for all trained parameters, as for an update on the device.
    """
    parts = setting.trained_parts(sizes.adapters)
    elements = sizes.trainable / parts
    size = setting.dtype_bytes
    gradient = size if setting.accumulate == 1 and (setting.sharded or setting.world == 1) and not sizes.adapters else 4
    if device.type == "cuda" and optim in OWN_UPDATES and not setting.deepspeed:
        down = elements * (4 + state_per_element(optim)[0])
        up = down
        if setting.offload == "all":  # gradients go up for their norm and for the update, weights come back
            up, down = up + 2 * elements * gradient, down + elements * size
        return max(max(up, down) / device.host_link, host_devices(setting) * (up + down) / HOST_TRAFFIC)
    moved = 0.0 if setting.offload == "all" and parts > 1 else elements * (gradient + size)
    return moved / device.host_link + host_devices(setting) * update_bytes / parts / HOST_BANDWIDTH
