"""Bytes a fine-tune needs on one device, by part, at the moment of its peak.

The peak is the largest of three moments of a step:

    loss       the forward pass is over: everything kept, and the head's chunk
    backward   the first layer's backward: everything kept, and its transient
    end        the last layer's backward: all gradients, one layer's transient

Gradients of earlier micro-batches exist in all three, the head's from the loss on, the others at the end.
Exact: weights, gradients, masters, optimizer (`states.py`). Counted by formula: activations, transient, head
(`activations.py`). Stated constants: workspace, and outside the allocator its fragmentation and the context
(`efficiency.py`). A sharded setting divides weights, gradients and states by the number of devices (adapters, which
are small, are not) and gathers the weights of two layers, of the embeddings and of the head at a time (FSDP2, as
ZeRO-3, arXiv:1910.02054).

Units: bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.plan.activations import (
    activation_bytes,
    head_bytes,
    kept_bytes_per_token,
    last_layer_saving,
    transient_bytes,
)
from luthier.plan.efficiency import EFFICIENCY, Efficiency
from luthier.plan.launches import RECORDINGS, replayed
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.plan.states import BUCKET_BYTES, gradient_bytes, master_bytes, optimizer_bytes, weight_bytes
from luthier.plan.trained import trainable_parameters
from luthier.recipe.optimizers import OPTIMIZERS

__all__ = ["MemoryPlan", "estimate_memory", "trainable_parameters"]

PARTS = (
    "weights", "adapters", "gradients", "masters", "optimizer", "activations", "transient", "logits", "gathered",
    "workspace", "recordings", "outside",
)  # fmt: skip

OWN_UPDATES = ("adamw_torch_fused", "adamw_8bit")
"""Optimizers that take 16-bit gradients as they are: one kernel (`train/master_adamw.py`, `train/adamw8.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the bytes go at the peak of a step."""

    parameters: int
    trainable: int
    tokens: int
    """Of the largest micro-batch."""
    moment: str
    """`loss`, `backward` or `end`."""
    weights: int
    adapters: int
    gradients: int
    masters: int
    optimizer: int
    activations: int
    transient: int
    logits: int
    gathered: int
    """Weights gathered from other devices."""
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
    share = setting.world if setting.sharded else 1
    trained = 1 if sizes.adapters else share  # adapters are whole on every device (`train/distributed/fsdp.py`)
    weights = weight_bytes(sizes, setting, table)
    static = {
        "weights": (weights["base"] + weights["unpacked"]) // share + weights["modules_to_save"],
        "adapters": weights["adapters"],
        "masters": master_bytes(sizes, setting.dtype_bytes) // trained,
        "optimizer": optimizer_bytes(sizes, optim, optim_args) // trained,
        "gathered": _gathered(sizes, setting),
        "workspace": table.workspace_bytes if cuda else table.process_bytes,
    }
    rows = max(1, round(supervised * setting.micro_tokens))
    head = head_bytes(sizes, setting, rows, table, cuda=cuda)
    moment, dynamic = _peak(_moments(sizes, setting, head=head, supervised=supervised, optim=optim, share=trained))
    peak = sum(static.values()) + sum(dynamic.values())
    outside = round(table.fragmentation * peak) + table.context_bytes if cuda else 0
    outside += table.communication_bytes if setting.world > 1 else 0
    recordings = _recordings(sizes, setting, supervised) if replayed(sizes, setting, cuda=cuda) else 0
    return MemoryPlan(
        parameters=sizes.parameters, trainable=sizes.trainable, tokens=setting.micro_tokens, moment=moment,
        recordings=recordings, outside=outside, **static, **dynamic,
    )  # fmt: skip


def _moments(
    sizes: Sizes, setting: Setting, *, head: int, supervised: float, optim: str, share: int
) -> dict[str, dict[str, int]]:
    """Bytes of the parts that come and go, by moment."""
    size = setting.dtype_bytes
    activations = activation_bytes(sizes, setting, supervised)
    before, after = (part // share for part in gradient_bytes(sizes, setting))
    head_gradient = size * sizes.head // share if sizes.trained_head else 0
    # Where gradients are summed tensor by tensor, the head's is gone into its sum at once.
    early = before + (0 if before and after == before else head_gradient)
    lowest_is_whole = setting.whole_layers(sizes.shape.layers) > sizes.lowest_layer
    lowest = kept_bytes_per_token(sizes, "layer" if lowest_is_whole else setting.rest, size, wide=setting.wide)
    transient = transient_bytes(sizes, setting, setting.micro_tokens, whole=lowest_is_whole)
    end = {
        "activations": min(activations, lowest * setting.micro_tokens),
        "transient": max(transient if sizes.backward_layers else 0, _at_the_end(sizes, setting, optim)),
    }
    stages = _backward_stages(sizes, setting, activations, supervised)
    backward = max(stages, key=lambda parts: sum(parts.values()))
    return {
        "loss": {"gradients": before, "activations": activations, "transient": 0, "logits": head},
        "backward": {"gradients": early, "logits": 0, **backward},
        "end": {"gradients": after, "logits": 0, **end},
    }


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
    other than our own get fp32 copies of kept 16-bit gradients, some at a time; Adafactor makes its update in fp32."""
    tied = setting.dtype_bytes * sizes.head if sizes.shape.tied and sizes.trained_embedding else 0
    kept = setting.dtype_bytes < 4 and setting.accumulate == 1 and setting.world == 1
    most = 4 * sizes.trainable if OPTIMIZERS[optim].whole else BUCKET_BYTES
    copies = min(most, 4 * sizes.trainable) if kept and optim not in OWN_UPDATES else 0
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


def _gathered(sizes: Sizes, setting: Setting) -> int:
    """Two layers, embeddings and head in the compute type, and as much gradient for what is trained.

    The root keeps embeddings, last norm and head from its forward to the end of its backward pass.
    """
    if not setting.sharded:
        return 0
    root = sizes.head if sizes.shape.tied else 2 * sizes.head
    layers = 2 * sizes.linear_per_layer
    trained = (layers if sizes.trained_linear else 0) + (root if sizes.trained_head or sizes.trained_embedding else 0)
    return (layers + root + (0 if sizes.adapters else trained)) * setting.dtype_bytes
