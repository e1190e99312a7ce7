"""Tiny random models of the families that are tested, by name."""

from __future__ import annotations

import torch

COMMON = {
    "vocab_size": 601, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
EXPERTS = {"num_experts_per_tok": 2}
FLAT = {
    "llama": ("Llama", {}),
    "llama-tied-bias": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 4}),
    "gemma": ("Gemma", {}),
    "gemma3": ("Gemma3Text", {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": MIXED}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3-window": ("Phi3", {"sliding_window": 4}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "granite": ("Granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 1}),
}  # fmt: skip
PADDED = {
    "gemma2": ("Gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 8, **CAPS}),
    "gpt-oss": ("GptOss", {**EXPERTS, "num_local_experts": 4, "sliding_window": 4, "layer_types": MIXED}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "mamba": ("Mamba", {"state_size": 4, "expand": 2}),
}  # fmt: skip


def build(name: str, *, seed: int = 0, **overrides):
    """The tiny model `name` in fp32, training mode, its own attention; weights large enough that attention matters."""
    import transformers

    family, settings = {**FLAT, **PADDED}[name]
    config_class = getattr(transformers, f"{family}Config")
    shared = {} if family in {"GPT2"} else COMMON
    if family == "Bloom":
        shared = {key: COMMON[key] for key in ("vocab_size", "hidden_size", "pad_token_id")}
    if family == "GPT2":
        shared = {"vocab_size": 601, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    if family == "Mamba":
        shared = {key: COMMON[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}
    config = config_class(**{**shared, **settings, **overrides})
    model_class = getattr(
        transformers, {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(family, f"{family}ForCausalLM")
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = model_class(config).float()
        with torch.no_grad():
            for name_of, weight in model.named_parameters():
                if weight.ndim >= 2:
                    weight.mul_(8.0 if "embed" not in name_of and "wte" not in name_of else 2.0)
    return model.train()
