"""Bytes a fine-tune needs on one device, by part, at the moment of its peak.

The peak is the largest of three moments of a step:

    loss       the forward pass is over: everything kept, and the head's chunk
    backward   the first layer's backward: everything kept, and its transient
    end        the last layer's backward: all gradients, one layer's transient

Gradients of earlier micro-batches exist in all three; with one micro-batch a step only those of the head do before
`end`. Exact: weights, gradients, masters, optimizer (`states.py`). Counted by formula: activations, transient, head
(`activations.py`). Stated constants: workspace, and outside the allocator its fragmentation and the context
(`efficiency.py`). A sharded setting divides weights, gradients and states by the number of devices and gathers
the weights of two layers and of the embeddings at a time (FSDP2, ZeRO-3, arXiv:1910.02054).

Units: bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.plan.activations import activation_bytes, head_bytes, kept_bytes_per_token, transient_bytes
from luthier.plan.efficiency import EFFICIENCY, Efficiency
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes
from luthier.plan.states import gradient_bytes, master_bytes, optimizer_bytes, weight_bytes
from luthier.plan.trained import trainable_parameters

__all__ = ["MemoryPlan", "estimate_memory", "trainable_parameters"]

PARTS = (
    "weights", "adapters", "gradients", "masters", "optimizer", "activations", "transient", "logits", "gathered",
    "workspace", "outside",
)  # fmt: skip


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
    outside: int
    """Context and fragmentation: not in the allocator's peak."""

    @property
    def peak(self) -> int:
        """What the allocator's peak will show (`torch.cuda.max_memory_allocated`); of the process on a CPU."""
        return self.total - self.outside

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
    device_type: str = "cuda",
    table: Efficiency = EFFICIENCY,
) -> MemoryPlan:
    """Memory of one training step.

    Args:
        sizes: of model and method.
        setting: micro-batch, recompute, storage, sharding.
        optim: `train.optim`.
        supervised: share of the tokens that have a loss.
        device_type: `cuda` or `cpu`.
        table: constants.
    """
    cuda = device_type == "cuda"
    share = setting.world if setting.sharded else 1
    weights = weight_bytes(sizes, setting.base, setting.dtype_bytes, table)
    chunk = table.head_chunk_bytes if cuda else table.head_chunk_bytes_cpu
    head = head_bytes(sizes, setting, max(1, round(supervised * setting.micro_tokens)), chunk)
    gradients = gradient_bytes(sizes)
    static = {
        "weights": (weights["base"] + weights["unpacked"] + weights["modules_to_save"]) // share,
        "adapters": weights["adapters"] // share,
        "masters": master_bytes(sizes, setting.dtype_bytes) // share,
        "optimizer": optimizer_bytes(sizes, optim) // share,
        "gathered": _gathered(sizes, setting),
        "workspace": table.workspace_bytes if cuda else table.process_bytes,
    }
    moment, dynamic = _peak(_moments(sizes, setting, head=head, gradients=gradients // share))
    peak = sum(static.values()) + sum(dynamic.values())
    outside = round(table.fragmentation * peak) + table.context_bytes if cuda else 0
    outside += table.communication_bytes if setting.world > 1 else 0
    return MemoryPlan(
        parameters=sizes.parameters, trainable=sizes.trainable, tokens=setting.micro_tokens, moment=moment,
        outside=outside, **static, **dynamic,
    )  # fmt: skip


def _moments(sizes: Sizes, setting: Setting, *, head: int, gradients: int) -> dict[str, dict[str, int]]:
    """Bytes of the parts that come and go, by moment."""
    activations, transient = activation_bytes(sizes, setting), transient_bytes(sizes, setting)
    if sizes.lowest_layer >= sizes.shape.layers:
        transient = 0
    head_gradient = 4 * sizes.head if sizes.trained_head else 0
    early = gradients if setting.accumulate > 1 else min(gradients, head_gradient)
    # The lowest layer of the backward pass is the last to give up what it kept.
    policy = "layer" if setting.whole_layers(sizes.shape.layers) > sizes.lowest_layer else setting.rest
    last = kept_bytes_per_token(sizes, policy, setting.dtype_bytes) * setting.micro_tokens
    return {
        "loss": {"gradients": early if setting.accumulate > 1 else 0, "activations": activations, "transient": 0,
                 "logits": head},
        "backward": {"gradients": early, "activations": activations, "transient": transient, "logits": 0},
        "end": {"gradients": gradients, "activations": min(activations, last), "transient": transient, "logits": 0},
    }  # fmt: skip


def _peak(moments: dict[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    return max(moments.items(), key=lambda item: sum(item[1].values()))


def _gathered(sizes: Sizes, setting: Setting) -> int:
    """Two layers and the embeddings in the compute type, and as much gradient for what is trained."""
    if not setting.sharded:
        return 0
    layer = 2 * sizes.linear_per_layer + sizes.head
    trained = layer if sizes.trained_linear else 0
    return (layer + trained) * setting.dtype_bytes
