"""What a micro-batch keeps for its backward pass, and what one layer's backward needs for a moment.

Per token, in elements of the compute type, under each policy (d hidden, q query, kv key width, f intermediate):

    none        4 d + 2 q + 2 kv + 3 f    h, n1, rotated q, k, v, attention out, h2, n2, gate and up, their product
    selective   2 d + 2 q + 2 kv + 2 f    norms and product are computed again from these
    layer       d                         the layer's input; d + q where attention's output is kept beside it

plus, for none and selective, q + kv with normed heads (raw and rotated q, k), 2 d with four norms a layer (their
inputs), and in bytes the log-sum-exp of attention (4 a head) and two fp32 1/rms; with adapters u of each group,
padded to 64 in an extended matrix. Families without a layer of the engine's own, and layers with DoRA, keep what
autograd keeps; DoRA for each adapted matrix two outputs more, and for a moment the operands of its norm (`dora.py`).
Where S devices share each sequence (Ulysses, arXiv:2309.14509) a token is 1/S of the tokens of its sequence, attention
has as many elements (all tokens, 1/S of the heads), and its output is kept twice, before and after the exchange; its
backward holds the exchanged q, k and v and their gradients once more.
Source: `fast/decoder/` (hand-written backward); the formulas are those of its authors.
"""

from __future__ import annotations

from typing import Literal

from luthier.plan.dora import dora_bytes
from luthier.plan.efficiency import Efficiency
from luthier.plan.setting import Setting
from luthier.plan.sizes import Sizes

__all__ = [
    "activation_bytes",
    "attention_bytes_per_token",
    "exchanged_elements",
    "head_bytes",
    "kept_bytes_per_token",
    "last_layer_saving",
    "transient_bytes",
]

Policy = Literal["none", "selective", "layer"]


def attention_bytes_per_token(sizes: Sizes, setting: Setting) -> int:
    """Bytes a token keeps in a decoder layer that runs again, so as not to attend again: output and log-sum-exp. (By
    document, on a CPU or in fp32, autograd holds q, k and v with it.)"""
    outputs = 2 if setting.sequence_parallel > 1 else 1
    return (outputs * sizes.shape.query * setting.dtype_bytes + 4 * sizes.shape.heads) if sizes.fast else 0


def kept_bytes_per_token(sizes: Sizes, policy: Policy, dtype_bytes: int, *, wide: bool = True) -> int:
    """Bytes a token keeps in one decoder layer under a policy. `wide`: see `Setting.wide`."""
    shape = sizes.shape
    d, q, kv, f = shape.hidden_size, shape.query, shape.key_value, shape.intermediate_size
    if policy == "layer":
        return d * dtype_bytes
    ranks = sum(group.pad if wide else group.rank for group in sizes.groups)
    fp32 = 4 * shape.heads + 4 * shape.norms_per_layer
    if not sizes.fast:
        # Under autograd: both norms with input and output, q, k, v before and after rotation, attention out,
        # gate, up, activation, product, and A x of every adapter.
        elements = (2 + shape.norms_per_layer) * d + 3 * q + 3 * kv + 4 * f
        elements += 2 * sum(group.outputs for group in sizes.groups if group.rank) if sizes.dora else 0
        return (elements + sum(group.rank for group in sizes.groups)) * dtype_bytes + fp32
    elements = 4 * d + 2 * q + 2 * kv + 3 * f if policy == "none" else 2 * d + 2 * q + 2 * kv + 2 * f
    elements += max(0, shape.norms_per_layer - 2) * d
    if shape.qk_norm:
        elements += q + kv
        fp32 += 4 * (shape.heads + shape.key_value_heads)
    return (elements + ranks) * dtype_bytes + fp32


def exchanged_elements(sizes: Sizes, setting: Setting) -> int:
    """Elements a token of q, k, v and attention's output that one all-to-all each moves, over S devices: 2 q + 2 kv.
    With fewer key heads than devices each device gets one whole head."""
    shape = sizes.shape
    key_value = max(shape.key_value_heads, setting.sequence_parallel) * shape.head_dim
    return 2 * shape.query + 2 * key_value


def last_layer_saving(sizes: Sizes, setting: Setting, supervised: float) -> int:
    """Bytes the last decoder layer keeps less than the others: after attention only the supervised rows go on
    (`fast/decoder/layer.py`); their rows of the attention output are a copy."""
    if not sizes.fast or setting.whole_layers(sizes.shape.layers) >= sizes.shape.layers or not sizes.backward_layers:
        return 0
    shape = sizes.shape
    after = shape.hidden_size + 2 * shape.intermediate_size
    if setting.rest == "none":
        after += shape.hidden_size + shape.intermediate_size
    after += sum(group.pad if setting.wide else group.rank for group in sizes.groups if group.name != "qkv")
    per_token = (1.0 - supervised) * after - supervised * shape.query
    return round(setting.micro_tokens * per_token * setting.dtype_bytes)


def activation_bytes(sizes: Sizes, setting: Setting, supervised: float = 1.0) -> int:
    """Bytes kept by all decoder layers at the end of the forward pass, and between them.

    Layers below the lowest trained one keep nothing. Outside: the input of the last norm and the tables of RoPE; a
    family without a layer of the engine's own has all rows of the last norm's output as well.
    """
    layers, lowest = sizes.shape.layers, sizes.lowest_layer
    whole = max(0, setting.whole_layers(layers) - lowest)
    rest = sizes.backward_layers - whole
    each = kept_bytes_per_token(sizes, setting.rest, setting.dtype_bytes, wide=setting.wide)
    each += sizes.shape.query * setting.dtype_bytes if setting.sequence_parallel > 1 else 0
    attention = setting.whole_layers(layers) - max(lowest, setting.attending(layers))
    per_token = whole * kept_bytes_per_token(sizes, "layer", setting.dtype_bytes) + rest * each
    per_token += max(0, attention) * attention_bytes_per_token(sizes, setting)
    size = setting.dtype_bytes
    outside = sizes.shape.hidden_size * size * (supervised if sizes.fast else 2.0)
    outside += 2 * sizes.shape.head_dim * size
    kept = setting.micro_tokens * (per_token + outside)
    return round(kept) - last_layer_saving(sizes, setting, supervised)


def transient_bytes(sizes: Sizes, setting: Setting, tokens: int, *, whole: bool) -> int:
    """Bytes of one decoder layer's backward pass over `tokens` rows, gone after it. `whole`: of a layer that is
    recomputed as a whole.

    The larger of its two halves (`fast/decoder/layer.py:backward_layer`), in elements a token:

        MLP         2 d + 3 f: gradients of the layer's output (and its copy with adapter columns), of the product and
                    of gate and up; f more where the product is computed again
        attention   3 d + 3 q + 4 kv: of the residual, of attention's output, of q, k, v before and after rotation;
                    and q in fp32 inside the kernel

    A recomputed layer also has its own activations back (but the product); a trained layer the gradient of its
    largest group in the compute type; a packed base the group that is being unpacked, twice; fp8 the rounded copy
    of the widest gradient.
    """
    shape, size = sizes.shape, setting.dtype_bytes
    d, q, kv, f = shape.hidden_size, shape.query, shape.key_value, shape.intermediate_size
    pads = {group.name: group.pad if setting.wide else group.rank for group in sizes.groups}
    again = f if sizes.fast and (whole or setting.rest == "selective") else 0
    mlp = (2 * d + 3 * f + again + pads.get("gate_up", 0) + pads.get("down", 0)) * size
    attention = (3 * d + 3 * q + 4 * kv + pads.get("qkv", 0)) * size + 4 * q
    if setting.sequence_parallel > 1:
        attention += exchanged_elements(sizes, setting) * size
    if setting.base == "fp8":
        mlp += 2 * f
    per_token = max(mlp, attention)
    if whole:
        per_token += kept_bytes_per_token(sizes, "none", size, wide=setting.wide) - f * size
        kept = setting.keep_attention and setting.attending(shape.layers) <= sizes.lowest_layer
        if kept and sizes.fast:  # counted with what is kept
            per_token -= q * size + 4 * shape.heads
    largest = max((group.parameters for group in sizes.groups), default=0)
    fixed = largest * size if sizes.trained_linear else 0
    if setting.base == "nf4":
        fixed += 2 * largest * size
    if whole:
        fixed += dora_bytes(sizes, setting)
    return tokens * per_token + fixed


def head_bytes(sizes: Sizes, setting: Setting, supervised: int, table: Efficiency, *, cuda: bool) -> int:
    """Bytes of head and loss at their peak: the end of the forward pass.

    `supervised` rows of hidden states and their gradient; one of the near-equal chunks of logits (`fast/head.py`),
    overwritten by its gradient; for a trained head its gradient, summed in fp32 over several chunks.
    """
    d, vocab, size = sizes.shape.hidden_size, sizes.shape.vocab_size, setting.dtype_bytes
    fitting = max(1, table.head_chunk_bytes // ((size if cuda else 4) * vocab))
    if cuda:
        fitting = min(fitting, table.head_chunk_rows)
    chunks = max(1, -(-supervised // fitting))
    rows = -(-supervised // chunks)
    trained = sizes.head * (size if chunks == 1 and cuda else 4) if sizes.trained_head else 0
    return 2 * supervised * d * size + rows * vocab * size + trained
