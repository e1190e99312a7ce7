"""Recomputation for decoder layers that run as transformers wrote them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from luthier.fast.decoder.function import Replaced
from luthier.fast.settings import EngineSettings

__all__ = ["recompute_other_layers"]


def recompute_other_layers(trunk: Any, decoder: Replaced, settings: EngineSettings) -> int:
    """Turn on non-reentrant checkpointing of the layers that were not replaced; returns how many.

    They know only one policy, the whole layer; it also stands in for `selective`. The reentrant variant of
    torch stops gradients when no input of a layer requires one, which is so for adapters on frozen embeddings.
    """
    if settings.recompute == "none":
        return 0
    from transformers.modeling_layers import GradientCheckpointingLayer

    count = 0
    # By their class: not every family calls the list of its layers `layers`.
    found = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
    for index, layer in enumerate(found):
        if hasattr(layer, "luthier_program") or settings.policy(index) == "none":
            continue
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        decoder.checkpointed.append(layer)
        count += 1
    return count
