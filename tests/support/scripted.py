"""A real Llama whose answer is known: the next token depends on the last one only, by a table."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

VOCABULARY = 600


def scripted_model(script: Mapping[int, int], *, otherwise: int = 2, max_position_embeddings: int = 512):
    """One layer that adds nothing, one-hot embeddings, and a head that is the table.

    After token t comes `script[t]`, or `otherwise`. The logit of that token is clearly the largest.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=VOCABULARY, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=max_position_embeddings, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        for token in range(VOCABULARY):
            model.lm_head.weight[script.get(token, otherwise), token] = 1.0
    return model


def chain(*tokens: int) -> dict[int, int]:
    """A script that says `tokens` one after the other."""
    return dict(pairwise(tokens))
