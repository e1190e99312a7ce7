"""One way to run a recipe: what the search varies. None of it changes what a step computes (fp8 apart)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Base", "Recompute", "Setting"]

Recompute = Literal["none", "selective", "layer"]
Base = Literal["plain", "nf4", "nf4_dequantized", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Micro-batch, recompute, storage of the base, sharding."""

    micro_tokens: int
    """Tokens of the largest micro-batch on one device."""
    recompute: Recompute = "none"
    """Of the layers that are not recomputed as a whole; `layer`: of all of the first `recompute_layers`."""
    recompute_layers: int | None = None
    """The first n decoder layers keep only their input; None: all of them with `layer`, else none."""
    base: Base = "plain"
    dtype_bytes: int = 2
    """Bytes of a number in the compute type."""
    accumulate: int = 1
    """Micro-batches of a step."""
    world: int = 1
    """Devices."""
    extended: bool = True
    """Adapters live in extended matrices: on CUDA, in families with a layer of the engine's own."""
    sharded: bool = False
    """Weights, gradients and states divided over the devices (FSDP2, ZeRO-3) instead of copied (DDP)."""
    replay: bool = True
    """Small micro-batches are recorded and replayed (`fast/graph.py`); False: launched kernel by kernel."""

    @property
    def wide(self) -> bool:
        """Adapter and base are one product; a base that is packed or rounded cannot hold adapters."""
        return self.extended and self.base in ("plain", "nf4_dequantized")

    def whole_layers(self, layers: int) -> int:
        """How many of the first layers are recomputed as a whole."""
        if self.recompute_layers is not None:
            return min(self.recompute_layers, layers)
        return layers if self.recompute == "layer" else 0

    @property
    def rest(self) -> Literal["none", "selective"]:
        """Policy of the other layers."""
        return "selective" if self.recompute == "selective" else "none"

    def describe(self, layers: int) -> str:
        """In words: `16,384 tokens a micro-batch, the first 12 of 32 layers recomputed`."""
        whole = self.whole_layers(layers)
        parts = [f"{self.micro_tokens:,} tokens a micro-batch"]
        if whole >= layers:
            parts.append("all layers recomputed")
        else:
            if self.rest == "selective":
                parts.append("norms and the MLP's product recomputed")
            if whole:
                parts.append(f"the first {whole} of {layers} layers recomputed")
            if len(parts) == 1:
                parts.append("no recompute")
        named = {"nf4": "4-bit base unpacked for each product", "nf4_dequantized": "4-bit base kept unpacked",
                 "fp8": "fp8 base"}  # fmt: skip
        if self.base in named:
            parts.append(named[self.base])
        if self.world > 1:
            parts.append(f"{'sharded over' if self.sharded else 'copied to'} {self.world} devices")
        return ", ".join(parts)
