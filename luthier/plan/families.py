"""The tensors of decoder families, from the values of their `config.json`: names and shapes as transformers has them.

    llama (also SmolLM2, TinyLlama, distillations), mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, smollm3

Checked against transformers' own modules and against published parameter counts (`tests/plan/test_shape.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["KNOWN_FAMILIES", "family_tensors"]

KNOWN_FAMILIES = frozenset(["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"])
_TIED_BY_DEFAULT = frozenset(["gemma", "gemma2", "gemma3_text", "smollm3"])
_FOUR_NORMS = frozenset(["gemma2", "gemma3_text"])
_QK_NORM = frozenset(["qwen3", "gemma3_text"])


def family_tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter; a tied head is not listed.

    Raises:
        KeyError: the config lacks a size.
    """
    family = config["model_type"]
    hidden, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(int(config["num_hidden_layers"])):
        for name, shape in _layer(config, family):
            yield f"model.layers.{layer}.{name}", shape
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", family in _TIED_BY_DEFAULT):
        yield "lm_head.weight", (vocab, hidden)


def _layer(config: Mapping[str, Any], family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    query, key_value = heads * head_dim, int(config.get("num_key_value_heads") or heads) * head_dim
    if family == "phi3":
        yield "self_attn.qkv_proj.weight", (query + 2 * key_value, hidden)
        yield "self_attn.o_proj.weight", (hidden, query)
        yield "mlp.gate_up_proj.weight", (2 * inner, hidden)
        yield "mlp.down_proj.weight", (hidden, inner)
    else:
        widths = {"q_proj": query, "k_proj": key_value, "v_proj": key_value}
        for name, width in widths.items():
            yield f"self_attn.{name}.weight", (width, hidden)
            if family == "qwen2" or config.get("attention_bias"):
                yield f"self_attn.{name}.bias", (width,)
        yield "self_attn.o_proj.weight", (hidden, query)
        if family != "qwen2" and config.get("attention_bias"):
            yield "self_attn.o_proj.bias", (hidden,)
        for name in ("gate_proj", "up_proj"):
            yield f"mlp.{name}.weight", (inner, hidden)
            if config.get("mlp_bias"):
                yield f"mlp.{name}.bias", (inner,)
        yield "mlp.down_proj.weight", (hidden, inner)
        if config.get("mlp_bias"):
            yield "mlp.down_proj.bias", (hidden,)
    if family in _QK_NORM:
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if family in _FOUR_NORMS:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for name in norms:
        yield f"{name}.weight", (hidden,)
