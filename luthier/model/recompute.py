"""Gradient checkpointing: recompute activations in the backward pass."""

from __future__ import annotations

from typing import Any

__all__ = ["enable_recompute"]


def enable_recompute(model: Any) -> None:
    """Turn on non-reentrant checkpointing of the decoder layers.

    The reentrant variant stops gradients when no input of a layer requires one, which is so for adapters on
    frozen embeddings: the adapters would silently never learn. Forward passes must say `use_cache=False`;
    config.use_cache is left alone, it would end up in the exported config.json.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
