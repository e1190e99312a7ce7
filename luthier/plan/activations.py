"""What a micro-batch keeps for its backward pass, and what one layer's backward needs for a moment.

Per token, in elements of the compute type, under each policy (d hidden, q query, kv key width, f intermediate):

    none        4 d + 2 q + 2 kv + 3 f    h, n1, rotated q, k, v, attention out, h2, n2, gate and up, their product
    selective   2 d + 2 q + 2 kv + 2 f    norms and product are computed again from these
    layer       d                         the layer's input

plus, for none and selective, q + kv with normed heads (raw and rotated q, k), 2 d with four norms a layer (their
inputs), and in bytes the log-sum-exp of attention (4 a head) and two fp32 1/rms; with adapters u of each group,
padded to 64 in an extended matrix. Families without a layer of the engine's own keep what autograd keeps.
Source: `fast/decoder/` (hand-written backward); the formulas are those of its authors.
"""

from __future__ import annotations

from typing import Literal

from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes

__all__ = ["activation_bytes", "head_bytes", "kept_bytes_per_token", "transient_bytes"]

Policy = Literal["none", "selective", "layer"]


def kept_bytes_per_token(sizes: Sizes, policy: Policy, dtype_bytes: int, *, extended: bool = True) -> int:
    """Bytes a token keeps in one decoder layer under a policy."""
    shape = sizes.shape
    d, q, kv, f = shape.hidden_size, shape.query, shape.key_value, shape.intermediate_size
    if policy == "layer":
        return d * dtype_bytes
    ranks = sum(group.pad if extended else group.rank for group in sizes.groups)
    fp32 = 4 * shape.heads + 4 * shape.norms_per_layer
    if not sizes.fast:
        # Under autograd: both norms with input and output, q, k, v before and after rotation, attention out,
        # gate, up, activation, product, and A x of every adapter.
        elements = (2 + shape.norms_per_layer) * d + 3 * q + 3 * kv + 4 * f
        return (elements + sum(group.rank for group in sizes.groups)) * dtype_bytes + fp32
    elements = 4 * d + 2 * q + 2 * kv + 3 * f if policy == "none" else 2 * d + 2 * q + 2 * kv + 2 * f
    elements += (q + kv if shape.qk_norm else 0) + max(0, shape.norms_per_layer - 2) * d
    return (elements + ranks) * dtype_bytes + fp32


def activation_bytes(sizes: Sizes, setting: Setting) -> int:
    """Bytes kept by all decoder layers at the end of the forward pass, and between them.

    Layers below the lowest trained one keep nothing. Outside: embedding output, last norm (input and output) and
    the tables of RoPE.
    """
    extended = setting.base in ("plain", "nf4_dequantized") and setting.dtype_bytes == 2
    layers, lowest = sizes.shape.layers, sizes.lowest_layer
    whole = max(0, setting.whole_layers(layers) - lowest)
    rest = sizes.backward_layers - whole
    each = kept_bytes_per_token(sizes, setting.rest, setting.dtype_bytes, extended=extended)
    per_token = whole * kept_bytes_per_token(sizes, "layer", setting.dtype_bytes) + rest * each
    outside = (3 * sizes.shape.hidden_size + 2 * sizes.shape.head_dim) * setting.dtype_bytes
    return setting.micro_tokens * (per_token + outside)


def transient_bytes(sizes: Sizes, setting: Setting) -> int:
    """Bytes of one decoder layer's backward pass, gone after it.

    2 (2 f + P) + 2 (f + P) + 3 d + q + 2 kv elements a token (gradients of gate-up and product with their adapter
    columns, of both norms, of q, k, v); a recomputed layer also has its own activations back; a trained layer the
    gradient of its largest matrix in the compute type; a packed base the group that is being unpacked, twice.
    """
    shape = sizes.shape
    pads = {group.name: group.pad for group in sizes.groups}
    d, q, kv, f = shape.hidden_size, shape.query, shape.key_value, shape.intermediate_size
    elements = 2 * (2 * f + pads.get("gate_up", 0)) + 2 * (f + pads.get("down", 0)) + 3 * d + q + 2 * kv
    per_token = elements * setting.dtype_bytes
    if setting.base == "fp8":
        per_token += 3 * f + d  # quantised copies
    if setting.whole_layers(shape.layers) > sizes.lowest_layer:
        per_token += kept_bytes_per_token(sizes, "none", setting.dtype_bytes)
    largest = max((group.parameters for group in sizes.groups), default=0)
    fixed = largest * setting.dtype_bytes if sizes.trained_linear else 0
    if setting.base == "nf4":
        fixed += 2 * largest * setting.dtype_bytes
    return setting.micro_tokens * per_token + fixed


def head_bytes(sizes: Sizes, setting: Setting, supervised: int, chunk_bytes: int) -> int:
    """Bytes of head and loss at their peak: the end of the forward pass.

    `supervised` rows of hidden states and their gradient; one chunk of logits, at most `chunk_bytes` in fp32
    (`fast/head.py`), held in the compute type and overwritten by its gradient, with an fp32 row of d a token; for a
    trained head its gradient summed in fp32 and handed on in the compute type.
    """
    d, vocab, size = sizes.shape.hidden_size, sizes.shape.vocab_size, setting.dtype_bytes
    rows = max(1, min(supervised, chunk_bytes // (4 * vocab)))
    trained = sizes.head * (4 + size) if sizes.trained_head else 0
    return 2 * supervised * d * size + rows * vocab * size + rows * d * 4 + trained
