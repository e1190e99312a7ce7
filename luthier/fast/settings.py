"""What the engine is told: how layers run, and what is computed again in the backward pass.

The plan chooses these values; `train/setup.py` takes them from the resolved recipe. No setting but
`frozen_base: fp8` changes what is computed beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["EngineSettings", "FrozenBase", "Recompute"]

Recompute = Literal["none", "selective", "layer"]
FrozenBase = Literal["as_loaded", "dequantized", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of one engine."""

    neftune_noise_alpha: float = 0.0
    """NEFTune noise on the embeddings in training; 0 turns it off."""
    replace_layers: bool = True
    """False: every module runs as transformers and PEFT wrote it (attention and loss stay packed)."""
    recompute: Recompute = "none"
    """`none` keeps every activation; `selective` computes norms and the activation product again (elementwise
    work only); `layer` keeps a layer's input and runs the layer again."""
    recompute_layers: int | None = None
    """The first n decoder layers run again as a whole, the others keep everything (`layer`) or all but elementwise
    work (`selective`). None: all layers do as `recompute` says."""
    keep_attention: bool = False
    """Layers that run again as a whole keep attention's output beside their input, and do not attend again: q numbers
    more a token, and for long documents much less time. Of layers on the layer function."""
    attending_layers: int = 0
    """With `keep_attention`: the first n decoder layers do attend again."""
    frozen_base: FrozenBase = "as_loaded"
    """Storage of frozen linear weights under adapters: `dequantized` keeps a 16-bit copy of a 4-bit base (the same
    values, bit for bit), `fp8` rounds the base to 8-bit floats with a scale a row (inexact)."""
    attention: Literal["packed", "varlen", "documents"] | None = None
    """What computes attention in replaced layers. None: the fastest that this device, type and head width have."""
    cuda_graphs: bool | None = None
    """Record and replay the decoder's passes. None: on CUDA, for batches whose launches take longer than their work."""
    sharded: bool = False
    """The model is under FSDP2 or DeepSpeed's ZeRO: frozen and trained matrices exist as a whole only while their layer
    runs, so each pass reads them from the modules. No recordings, no adapters inside the base's matrix."""
    device: torch.device | None = None
    """Where the passes run, if not where the parameters are (`offload: all`)."""
    loose_adapters: bool = False
    """The model is under DeepSpeed's ZeRO, which moves adapters as well: each pass copies them (`lora.py`)."""
    fuse_adapters: bool | None = None
    """Adapter and base in one product through one extended matrix. None: on CUDA."""

    def policy(self, layer_index: int) -> Recompute:
        """What decoder layer `layer_index` (from 0) does."""
        if self.recompute_layers is None or self.recompute == "none":
            return self.recompute
        if layer_index < self.recompute_layers:
            return "layer"
        return "selective" if self.recompute == "selective" else "none"
