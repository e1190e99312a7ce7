"""FLOPs of a token, model and hardware, by the formulas of perf.md section 2.1.

For every linear weight of a decoder layer, per token: 2 forward; 2 for the input's gradient in every layer at or above
the lowest trained one; 2 for the weight's gradient where it is trained. LoRA's thin matrices count the same way. The
head counts at supervised tokens only (the share `supervised`). Causal attention over documents of n tokens:

    A = 2 x layers x heads x head_dim x sum(n^2) / sum(n)        forward, per token: 4 FLOPs a pair and channel, half
                                                                 of the square

    model FLOPs (MFU):     ... + 3 A                             backward = 2 A
    hardware FLOPs (HFU):  ... + 3.5 A + recomputed layers       FlashAttention's backward is 2.5 A (it redoes Q K^T);
                                                                 a recomputed layer costs its forward again, A included

    full  6 L P + 6 H s + 3 A        LoRA  4 L P + 4 H s + 6 p + 3 A

Norms, rotary positions, activations, softmax and the optimizer count nothing. Dequantisation counts nothing.
Denominators: 790 TFLOP/s (bf16 products measured on the H200 and H100 of this project) and 989 (datasheet). With an
fp8 base the same numerators and denominators are used, so that MFU compares work done with the bf16 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MEASURED_PEAK = 790e12
DATASHEET_PEAK = 989e12


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs per token."""

    model: float
    hardware: float


def flops_per_token(
    model: Any, *, lengths: Sequence[int], supervised: float, recomputed_layers: int = 0
) -> Flops:  # fmt: skip
    """See the head of this file.

    Args:
        model: as it is trained (`requires_grad` set, adapters in place).
        lengths: tokens of the documents.
        supervised: share of tokens that are targets.
        recomputed_layers: decoder layers run again in the backward pass (layer policy only).
    """
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    squares = sum(n * n for n in lengths) / sum(lengths)
    attention = 2.0 * layers * config.num_attention_heads * head_dim * squares
    matrices = _matrices(model)
    trained_layers = [layer for layer, _, trained in matrices if trained and layer is not None]
    lowest = 0 if _embeddings_train(model) else min(trained_layers, default=layers)
    body = forward = 0.0
    for layer, numel, trained in matrices:
        if layer is None:
            continue
        forward += 2.0 * numel
        body += 2.0 * numel * (1 + (layer >= lowest) + trained)
    head = 2.0 * config.vocab_size * config.hidden_size * supervised
    head *= 1 + (lowest < layers) + _head_trains(model)
    share = (layers - lowest) / layers
    recomputed = recomputed_layers / layers * (forward + attention)
    base = body + head
    return Flops(model=base + (1 + 2 * share) * attention, hardware=base + (1 + 2.5 * share) * attention + recomputed)


def _matrices(model: Any) -> list[tuple[int | None, int, bool]]:
    """(decoder layer, weights, trained) of every matrix in the model; 4-bit ones count what they stand for."""
    from luthier.model.quantize import parameter_numel

    found: list[tuple[int | None, int, bool]] = []
    for name, parameter in model.named_parameters():
        numel = parameter_numel(parameter)
        if "norm" in name or name.endswith("bias") or numel == max(parameter.shape):
            continue
        layer = name.partition(".layers.")[2].partition(".")[0]
        found.append((int(layer) if layer.isdigit() else None, numel, parameter.requires_grad))
    return found


def _embeddings_train(model: Any) -> bool:
    return any(p.requires_grad for p in model.get_input_embeddings().parameters())


def _head_trains(model: Any) -> bool:
    return any(p.requires_grad for p in model.get_output_embeddings().parameters())
