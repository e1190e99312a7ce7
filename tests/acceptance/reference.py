"""The independent reference: rows and a Llama in plain torch, nothing of luthier, transformers or peft."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


def encode_chat(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    """Ids of a ChatML conversation and which of them are trained: each answer with its `<|im_end|>`."""
    ids: list[int] = []
    trained: list[bool] = []
    for message in messages:
        head, body, tail = f"<|im_start|>{message['role']}\n", message["content"] + "<|im_end|>", "\n"
        for text, mine in ((head, False), (body, message["role"] == "assistant"), (tail, False)):
            pieces = tokenizer.encode(text, add_special_tokens=False).ids
            ids += pieces
            trained += [mine] * len(pieces)
    return ids, trained


def load_llama(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float64, and config.json."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {name: value.double() for name, value in load_file(file).items()}
    return weights, json.loads((folder / "config.json").read_text("utf-8"))


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def _rotate(x: Tensor, theta: float) -> Tensor:
    width = x.shape[-1]
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequencies).repeat(1, 2)
    half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
    return x * angles.cos() + half * angles.sin()


def logits(model: tuple[dict[str, Tensor], dict[str, Any]], ids: list[int]) -> Tensor:
    """(T, V) logits of one sequence alone."""
    w, c = model
    heads, groups = c["num_attention_heads"], c["num_key_value_heads"]
    theta = (c.get("rope_parameters") or c)["rope_theta"]
    x = w["model.embed_tokens.weight"][ids]
    causal = torch.full((len(ids), len(ids)), -math.inf, dtype=torch.float64).triu(1)
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = _norm(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
        q, k, v = (
            (h @ w[f"{p}self_attn.{name}_proj.weight"].T).view(len(ids), -1, c["head_dim"]).transpose(0, 1)
            for name in "qkv"
        )
        k, v = (part.repeat_interleave(heads // groups, 0) for part in (k, v))
        q, k = _rotate(q, theta), _rotate(k, theta)
        mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(c["head_dim"]) + causal, -1) @ v
        x = x + mixed.transpose(0, 1).reshape(len(ids), -1) @ w[p + "self_attn.o_proj.weight"].T
        h = _norm(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (functional.silu(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight"] if c["tie_word_embeddings"] else w["lm_head.weight"]
    return _norm(x, w["model.norm.weight"], c["rms_norm_eps"]) @ head.T


def summed_nll(
    model: tuple[dict[str, Tensor], dict[str, Any]], ids: list[int], trained: list[bool]
) -> tuple[float, int]:
    """Sum over trained tokens of -log p(token | everything before it in this row), and their number."""
    chosen = torch.log_softmax(logits(model, ids)[:-1], -1)[range(len(ids) - 1), ids[1:]]
    mine = torch.tensor(trained[1:])
    return float(-chosen[mine].sum()), int(mine.sum())
