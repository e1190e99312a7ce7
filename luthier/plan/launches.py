"""How many kernels the host launches in a step, and which micro-batches are replayed as CUDA graphs instead.

The engine records the decoder of small micro-batches, whose launches take longer than the work, and replays it
(`fast/graph.py`); the constants here are its own. A recording keeps its memory: one for each shape, three at most.
"""

from __future__ import annotations

from luthier.plan.efficiency import Efficiency
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes

__all__ = ["ATTENTION_WIDTHS", "FLOPS", "LAUNCH_SECONDS_A_LAYER", "RECORDINGS", "launches", "own_attention", "replayed"]

ATTENTION_WIDTHS = (64, 128, 256)
"""Head widths of the engine's own attention (`fast/kernels/attention_schedule.py:supports`)."""
LAUNCH_SECONDS_A_LAYER, FLOPS, RECORDINGS = 2.5e-3, 3.5e14, 3
"""`fast/graph.py`."""


def own_attention(sizes: Sizes) -> bool:
    """Attention runs on the engine's own kernels, on a GPU in 16 bits."""
    return sizes.fast and sizes.shape.head_dim in ATTENTION_WIDTHS


def most_replayed_tokens(sizes: Sizes) -> int:
    """The largest micro-batch that is replayed: below, launches of the decoder take longer than its work."""
    outside = sizes.head if sizes.shape.tied else 2 * sizes.head
    weights = sizes.parameters - outside + sizes.adapter_parameters
    trained = sizes.trained_decoder
    operations = 6 if 2 * trained > weights else 4
    return int(sizes.shape.layers * LAUNCH_SECONDS_A_LAYER * FLOPS / (operations * max(1, weights)))


def replayed(sizes: Sizes, setting: Setting, *, cuda: bool) -> bool:
    """The decoder's launches are replayed."""
    possible = cuda and setting.replay and setting.dtype_bytes == 2 and own_attention(sizes)
    possible = possible and not sizes.dropout and sizes.trained_decoder > 0
    return possible and setting.micro_tokens <= most_replayed_tokens(sizes)


def launches(sizes: Sizes, setting: Setting, *, again: int, table: Efficiency) -> float:
    """Kernels of a step that are launched one by one; `again`: decoder layers that are recomputed as a whole."""
    decoder = 0.0
    if not replayed(sizes, setting, cuda=True):
        each = table.launches_per_layer + (table.adapter_launches if sizes.adapters else 0.0)
        forward = table.launches_forward * (sizes.shape.layers + again)
        decoder = each * (forward + (1.0 - table.launches_forward) * sizes.backward_layers)
    return setting.accumulate * (decoder + table.launches_batch) + table.launches_step
