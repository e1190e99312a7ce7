"""Bytes a fine-tune needs on one device, by part, at the moment of its peak.

The peak is the largest of these moments of a step:

    loss       the forward pass is over: everything kept, and the head's chunk
    backward   the first layer's backward: everything kept, and its transient
    end        the last layer's backward: all gradients, one layer's transient
    root       under shards: embeddings' and head's gradient is reduced

Gradients of earlier micro-batches exist in all three, the head's from the loss on, the others at the end.
Exact: weights, gradients, masters, optimizer (`states.py`). Counted by formula: activations, transient, head
(`activations.py`). Stated constants: workspace, and outside the allocator its fragmentation and the context
(`efficiency.py`). Over N devices (arXiv:1910.02054, section 5):

    zero1            masters and states by N
    zero2            gradients as well
    fsdp2, zero3     weights as well; under FSDP2 adapters, which are small, stay whole with their states
    offload          `optimizer`: masters and states are in host memory, on one device as well; `all`: shards of weights
                     and gradients, too (`host.py`; arXiv:2101.06840); on a CPU that is where they are anyway
    sequences in S   activations, transient and logits are of 1/S of the tokens: `Setting.micro_tokens` is that share

and what comes together for a moment (`gathered.py`).

Units: bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from luthier.plan.activations import (
    activation_bytes,
    attention_bytes_per_token,
    head_bytes,
    kept_bytes_per_token,
    last_layer_saving,
    transient_bytes,
)
from luthier.plan.dora import dora_bytes
from luthier.plan.efficiency import EFFICIENCY, Efficiency
from luthier.plan.gathered import gathered_bytes
from luthier.plan.launches import RECORDINGS, replayed
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.plan.states import (
    BUCKET_BYTES,
    OWN_UPDATES,
    TRAVELLING,
    gradient_bytes,
    held_weights,
    master_bytes,
    optimizer_bytes,
    weight_bytes,
)
from luthier.plan.trained import trainable_parameters
from luthier.recipe.optimizers import OPTIMIZERS, state_per_element

__all__ = ["MemoryPlan", "estimate_memory", "trainable_parameters"]

PARTS = (
    "weights", "adapters", "gradients", "masters", "optimizer", "activations", "transient", "logits", "gathered",
    "workspace", "recordings", "outside",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the bytes go at the peak of a step."""

    parameters: int
    trainable: int
    tokens: int
    """Of the largest micro-batch."""
    moment: str
    """`loss`, `backward`, `end` or `root`."""
    weights: int
    adapters: int
    gradients: int
    masters: int
    optimizer: int
    activations: int
    transient: int
    logits: int
    gathered: int
    """Weights gathered from other devices, and buffers of the exchange."""
    workspace: int
    """Of libraries inside the allocator; on a CPU the process itself."""
    recordings: int
    """Reserved for CUDA graphs of small micro-batches beyond what one pass needs: activations, transient and gradients
    of three shapes at most. Not in the allocator's peak."""
    outside: int
    """Context and fragmentation: not in the allocator's peak."""

    @property
    def peak(self) -> int:
        """What the allocator's peak will show (`torch.cuda.max_memory_allocated`); of the process on a CPU."""
        return self.total - self.outside - self.recordings

    @property
    def total(self) -> int:
        """All of it: what the device must have."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part; they add up to `total`."""
        return {name: getattr(self, name) for name in PARTS}


def estimate_memory(
    sizes: Sizes,
    setting: Setting,
    *,
    optim: str,
    supervised: float,
    optim_args: Mapping[str, Any] | None = None,
    device_type: str = "cuda",
    table: Efficiency = EFFICIENCY,
) -> MemoryPlan:
    """Memory of one training step.

    Args:
        sizes: of model and method.
        setting: micro-batch, recompute, storage, sharding.
        optim: `train.optim`.
        optim_args: `train.optim_args`.
        supervised: share of the tokens that have a loss.
        device_type: `cuda` or `cpu`.
        table: constants.
    """
    cuda = device_type == "cuda"
    copied = setting.offload == "optimizer" and not setting.deepspeed and not sizes.adapters
    if not cuda:  # the CPU's memory is the host's: nothing leaves it
        setting = replace(setting, way=replace(setting.way, offload="none"))
    parts = setting.trained_parts(sizes.adapters)
    held = held_weights(sizes, setting, table)
    on_device = 0 if setting.moves_states(sizes.adapters) else 1
    states = master_bytes(sizes, setting.dtype_bytes), optimizer_bytes(sizes, optim, optim_args)
    if copied:  # of fp32 weights as well (`train/host_weights.py`)
        states = 4 * sizes.trainable, states[1]
    static = {
        "weights": held["whole"] + (0 if setting.offload == "all" else held["shards"]),
        "adapters": weight_bytes(sizes, setting, table)["adapters"],
        "masters": on_device * -(-states[0] // parts),
        "optimizer": on_device * -(-states[1] // parts),
        "workspace": table.workspace_bytes if cuda else table.process_bytes,
    }
    rows = max(1, round(supervised * setting.micro_tokens))
    head = head_bytes(sizes, setting, rows, table, cuda=cuda)
    moment, dynamic = _peak(_moments(sizes, setting, head=head, supervised=supervised, optim=optim))
    peak = sum(static.values()) + sum(dynamic.values())
    outside = round(_fragmentation(sizes, setting, table) * peak) + table.context_bytes if cuda else 0
    outside += table.communication_bytes if setting.world > 1 and cuda else 0
    recordings = _recordings(sizes, setting, supervised) if replayed(sizes, setting, cuda=cuda) else 0
    return MemoryPlan(
        parameters=sizes.parameters, trainable=sizes.trainable, tokens=setting.micro_tokens, moment=moment,
        recordings=recordings, outside=outside, **static, **dynamic,
    )  # fmt: skip


def _fragmentation(sizes: Sizes, setting: Setting, table: Efficiency) -> float:
    """Share of the peak that the allocator holds on top: gathers and reductions have pools of their own."""
    if not setting.sharded:
        return table.fragmentation
    return table.sharded_fragmentation if sizes.adapters else table.sharded_trained_fragmentation


def _moments(sizes: Sizes, setting: Setting, *, head: int, supervised: float, optim: str) -> dict[str, dict[str, int]]:
    """Bytes of the parts that come and go, by moment."""
    size, share = setting.dtype_bytes, setting.gradient_parts(sizes.adapters)
    activations = activation_bytes(sizes, setting, supervised)
    before, after = (part // share for part in gradient_bytes(sizes, setting))
    head_gradient = size * sizes.head // share if sizes.trained_head else 0
    if setting.sharded and not sizes.adapters and setting.offload == "all":
        before = after = head_gradient = 0  # each reduced gradient goes to host memory at once
    # Where gradients are summed tensor by tensor, the head's is gone into its sum at once.
    early = before + (0 if before and after == before else head_gradient)
    if setting.deepspeed and setting.offload == "none":  # its partition is made whole for the first gradient
        early = after
    lowest_is_whole = setting.whole_layers(sizes.shape.layers) > sizes.lowest_layer
    lowest = kept_bytes_per_token(sizes, "layer" if lowest_is_whole else setting.rest, size, wide=setting.wide)
    if lowest_is_whole and setting.attending(sizes.shape.layers) <= sizes.lowest_layer:
        lowest += attention_bytes_per_token(sizes, setting)
    transient = transient_bytes(sizes, setting, setting.micro_tokens, whole=lowest_is_whole)
    end = {
        "activations": min(activations, lowest * setting.micro_tokens),
        "transient": max(transient if sizes.backward_layers else 0, _at_the_end(sizes, setting, optim)),
    }
    stages = _backward_stages(sizes, setting, activations, supervised)
    backward = max(stages, key=lambda parts: sum(parts.values()))
    moments = {
        "loss": {
            "gradients": before,
            "activations": activations,
            "transient": max(0, dora_bytes(sizes, setting) - head),
            "logits": head,
        },
        "backward": {"gradients": early, "logits": 0, **backward},
        "end": {"gradients": after, "logits": 0, **end},
        "root": {"gradients": after, "activations": 0, "transient": 0, "logits": 0},
    }
    for name, size in gathered_bytes(sizes, setting).items():
        moments[name]["gathered"] = size
    return moments


def _backward_stages(sizes: Sizes, setting: Setting, activations: int, supervised: float) -> list[dict[str, int]]:
    """What is still kept, and the transient of the layer at work: the last layer (on its supervised rows), the one
    before it, and the first of those that are recomputed as a whole, when all others have let go."""
    if not sizes.backward_layers:
        return [{"activations": activations, "transient": 0}]
    size, tokens = setting.dtype_bytes, setting.micro_tokens
    whole = max(0, setting.whole_layers(sizes.shape.layers) - sizes.lowest_layer)
    rest = sizes.backward_layers - whole
    each = kept_bytes_per_token(sizes, setting.rest, size, wide=setting.wide) * tokens
    last = each - last_layer_saving(sizes, setting, supervised)
    stages = []
    if rest:
        rows = round(tokens * supervised) if sizes.fast else tokens
        kept = {"activations": activations, "transient": transient_bytes(sizes, setting, rows, whole=False)}
        stages.append(kept)
    if rest > 1:
        transient = transient_bytes(sizes, setting, tokens, whole=False)
        stages.append({"activations": activations - last, "transient": transient})
    if whole:
        freed = last + (rest - 1) * each if rest else 0
        transient = transient_bytes(sizes, setting, tokens, whole=True)
        stages.append({"activations": activations - freed, "transient": transient})
    return stages


def _at_the_end(sizes: Sizes, setting: Setting, optim: str) -> int:
    """The embeddings' gradient where it is added to the head's; and what the update needs for a moment: optimizers
    other than our own get fp32 copies of kept 16-bit gradients, some at a time; of what is offloaded, pieces of masters
    and moments that travel (`train/round_trip.py`); Adafactor makes its update in fp32."""
    tied = setting.dtype_bytes * sizes.head if sizes.shape.tied and sizes.trained_embedding else 0
    alone = setting.world == 1 or (setting.sharded and not setting.deepspeed and not sizes.adapters)
    kept = setting.dtype_bytes < 4 and setting.accumulate == 1 and alone and setting.offload == "none"
    most = 4 * sizes.trainable if OPTIMIZERS[optim].whole else BUCKET_BYTES
    mine = 4 * sizes.trainable // setting.trained_parts(sizes.adapters)
    copies = min(most, mine) if kept and optim not in OWN_UPDATES else 0
    if setting.moves_states(sizes.adapters) and optim in OWN_UPDATES and not setting.deepspeed:
        copies = min(TRAVELLING * (4 + round(state_per_element(optim)[0])), 3 * mine)
    if optim == "adafactor":
        copies += 8 * sizes.largest_trained
    return max(tied, copies)


def _recordings(sizes: Sizes, setting: Setting, supervised: float) -> int:
    """Of `RECORDINGS` shapes: activations beyond those that are counted, the transient, and gradients of the decoder
    in the compute type. An upper bound: packs of one fullness and one number of documents have one shape."""
    kept = activation_bytes(sizes, setting, supervised)
    whole = setting.whole_layers(sizes.shape.layers) > sizes.lowest_layer
    transient = transient_bytes(sizes, setting, setting.micro_tokens, whole=whole)
    gradients = setting.dtype_bytes * sizes.trained_decoder
    return (RECORDINGS - 1) * kept + RECORDINGS * (transient + gradients)


def _peak(moments: dict[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    return max(moments.items(), key=lambda item: sum(item[1].values()))
