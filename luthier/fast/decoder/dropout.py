"""Dropout whose mask can be drawn again: the state of the random generator is noted before each draw.

Masks come from torch's default generator of the device, in PEFT's order and with PEFT's shapes, so a model
draws the same numbers replaced or not; the backward pass, and a layer that is run again, repeat them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Masks"]


class Masks:
    """The dropout masks of one forward pass of one projection, one an adapter."""

    def __init__(self, probabilities: tuple[float, ...]) -> None:
        self._probabilities = probabilities
        self._states: dict[int, Tensor] = {}

    def mask(self, adapter: int, like: Tensor) -> Tensor:
        """1 / (1 - p) where kept, 0 where dropped, in the shape of `like`: drawn, or drawn again."""
        probability, device = self._probabilities[adapter], like.device
        ones = torch.ones(like.shape, dtype=like.dtype, device=device)
        known = self._states.get(adapter)
        now = _state(device)
        if known is None:
            self._states[adapter] = now
            return torch.nn.functional.dropout(ones, probability)
        _set_state(known, device)
        try:
            return torch.nn.functional.dropout(ones, probability)
        finally:
            _set_state(now, device)


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
