"""One way to run a recipe: what the search varies. None of it changes what a step computes (fp8 apart)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.recipe.deepspeed_keys import ZERO

__all__ = ["HOST_DEVICES", "Base", "Offload", "Recompute", "Setting", "Strategy", "Way"]

HOST_DEVICES = 8
"""More devices than that are taken to be on several hosts, where nothing says how many a host has."""
Recompute = Literal["none", "selective", "layer"]
Strategy = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
Offload = Literal["none", "optimizer", "all"]
Base = Literal["plain", "nf4", "nf4_dequantized", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a model is spread over devices: `distributed` of the recipe."""

    strategy: Strategy = "ddp"
    offload: Offload = "none"
    """What lives in host memory between its uses: masters and optimizer state; the weights' shards too."""
    sequence_parallel: int = 1
    """Devices that share each sequence."""
    dp_replicate: int = 1
    """Copies of the model, each in shards (FSDP2); devices of one copy are neighbours."""

    @property
    def sharded(self) -> bool:
        """Weights are in shards (FSDP2, ZeRO-3)."""
        return self.strategy in ("fsdp2", "zero3")

    def words(self) -> str:
        """`fsdp2, 4 copies of shards, optimizer offloaded, 8 devices a sequence`."""
        copies = f", {self.dp_replicate} copies of shards" if self.dp_replicate > 1 else ""
        moved = {"none": "", "optimizer": ", optimizer offloaded", "all": ", weights and optimizer offloaded"}
        shared = f", {self.sequence_parallel} devices a sequence" if self.sequence_parallel > 1 else ""
        return self.strategy + copies + moved[self.offload] + shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Micro-batch, recompute, storage of the base, sharding."""

    micro_tokens: int
    """Tokens of the largest micro-batch on one device; its share of them where devices share a sequence."""
    recompute: Recompute = "none"
    """Of the layers that are not recomputed as a whole; `layer`: of all of the first `recompute_layers`."""
    recompute_layers: int | None = None
    """The first n decoder layers keep only their input; None: all of them with `layer`, else none."""
    keep_attention: bool = False
    """Recomputed layers keep attention's output too, and do not attend again."""
    attending_layers: int = 0
    """With `keep_attention`: the first n layers do attend again."""
    base: Base = "plain"
    dtype_bytes: int = 2
    """Bytes of a number in the compute type."""
    accumulate: int = 1
    """Micro-batches of a step."""
    world: int = 1
    """Devices."""
    extended: bool = True
    """Adapters live in extended matrices: on CUDA, in families with a layer of the engine's own."""
    way: Way = Way()
    """How the devices share the work."""
    reshard: bool = True
    """FSDP2 frees a layer's weights between its two passes (`distributed.reshard_after_forward`)."""
    replay: bool = True
    """Small micro-batches are recorded and replayed (`fast/graph.py`); False: launched kernel by kernel."""

    @property
    def wide(self) -> bool:
        """Adapter and base are one product; a base that is packed or rounded cannot hold adapters, and DeepSpeed moves
        them by themselves."""
        return self.extended and not self.deepspeed and self.base in ("plain", "nf4_dequantized")

    @property
    def sharded(self) -> bool:
        """Weights are in shards over all devices (FSDP2, ZeRO-3) instead of whole on each."""
        return self.world > 1 and self.way.sharded

    host: int = HOST_DEVICES
    """Devices of a host, where there are several hosts."""

    @property
    def deepspeed(self) -> bool:
        """DeepSpeed runs the step."""
        return self.world > 1 and self.way.strategy in ZERO

    @property
    def offload(self) -> Offload:
        """What lives in host memory. Of one device never `all`: it has no shards (`ways.py` refuses it)."""
        return self.way.offload

    def moves_states(self, adapters: bool) -> bool:
        """Masters and optimizer state are in host memory; those of adapters are small and stay (`fsdp2`)."""
        return self.offload != "none" and (self.deepspeed or not adapters)

    @property
    def sequence_parallel(self) -> int:
        """Devices that share each sequence."""
        return self.way.sequence_parallel if self.world > 1 else 1

    @property
    def shard_group(self) -> int:
        """Devices that hold one copy of the shards together."""
        return self.world // (self.way.dp_replicate if self.sharded else 1)

    @property
    def weight_parts(self) -> int:
        """Devices that the base is divided over."""
        return self.shard_group if self.sharded else 1

    def trained_parts(self, adapters: bool) -> int:
        """Devices that masters and optimizer state are divided over: all under ZeRO; under FSDP2 those of a copy, with
        adapters none, for these are whole everywhere (`train/distributed/fsdp.py`)."""
        if self.deepspeed or (self.sharded and not adapters):
            return self.shard_group
        return 1

    def gradient_parts(self, adapters: bool) -> int:
        """Devices that kept gradients are divided over: as states, but for ZeRO-1, where they are whole."""
        return 1 if self.way.strategy == "zero1" else self.trained_parts(adapters)

    def whole_layers(self, layers: int) -> int:
        """How many of the first layers are recomputed as a whole."""
        if self.recompute_layers is not None:
            return min(self.recompute_layers, layers)
        return layers if self.recompute == "layer" else 0

    def attending(self, layers: int) -> int:
        """How many of the first layers are recomputed with their attention."""
        whole = self.whole_layers(layers)
        return min(self.attending_layers, whole) if self.keep_attention else whole

    @property
    def rest(self) -> Literal["none", "selective"]:
        """Policy of the other layers."""
        return "selective" if self.recompute == "selective" else "none"

    def describe(self, layers: int) -> str:
        """In words: `16,384 tokens a micro-batch, the first 12 of 32 layers recomputed`."""
        whole = self.whole_layers(layers)
        parts = [f"{self.micro_tokens:,} tokens a micro-batch"]
        kept = whole - self.attending(layers)
        but = (f" but for attention{f' of {kept}' if kept < whole else ''}") if kept else ""
        if whole >= layers:
            parts.append(f"all layers recomputed{but}")
        else:
            if self.rest == "selective":
                parts.append("norms and the MLP's product recomputed")
            if whole:
                parts.append(f"the first {whole} of {layers} layers recomputed{but}")
            if len(parts) == 1:
                parts.append("no recompute")
        named = {"nf4": "4-bit base unpacked for each product", "nf4_dequantized": "4-bit base kept unpacked",
                 "fp8": "fp8 base"}  # fmt: skip
        if self.base in named:
            parts.append(named[self.base])
        if self.world > 1:
            spread = {"ddp": "copied to", "zero1": "states sharded over", "zero2": "gradients and states sharded over"}
            parts.append(f"{spread.get(self.way.strategy, 'sharded over')} {self.world} devices")
            if self.deepspeed:
                parts[-1] += " (DeepSpeed)"
            parts += [word.strip() for word in self.way.words().split(",")[1:]]
        elif self.offload != "none":
            parts.append("optimizer offloaded")
        return ", ".join(parts)
