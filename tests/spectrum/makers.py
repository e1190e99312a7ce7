"""Matrices of known signal, model folders of every kind of tensor, and the original script's formulas word for word."""

from __future__ import annotations

import math

import numpy as np
import torch
from safetensors.torch import save_file


def noise(n, m, *, std=0.02, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * std


def planted(n, m, strengths, *, std=0.02, seed=0):
    """Noise plus a signal with singular values `strengths` in units of std (n m)^(1/4), where it starts to show."""
    generator = torch.Generator().manual_seed(seed + 1000)
    rank = len(strengths)
    left = torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(m, rank, generator=generator, dtype=torch.float64)).Q
    unit = std * (n * m) ** 0.25
    return noise(n, m, std=std, seed=seed) + left @ torch.diag(torch.tensor(strengths).double() * unit) @ right.T


def values_of(matrix):
    return torch.linalg.svdvals(matrix.double()).numpy()


def original_snr(weights):
    """`calculate_snr_for_layer` of cognitivecomputations/spectrum (commit 0ed1756), with its helpers, in fp32."""
    if weights.ndim < 2:
        weights = weights.unsqueeze(0)
    s = torch.linalg.svdvals(weights.float())
    sigma = (torch.quantile(s, 0.75) - torch.quantile(s, 0.25)) / 1.349
    n, m = weights.shape[-2:]
    beta = n / m if n < m else m / n
    threshold = sigma * np.sqrt((1 + np.sqrt(beta)) ** 2)
    above = s > threshold
    signal = s[above].sum() if above.any() else torch.tensor(0.0)
    below = s[~above].sum() if (~above).any() else torch.tensor(1.0)
    return (signal / below / s[0]).item()


def layer(index, *, seed, hidden=32, wide=48, bias=False):
    """Tensors of one decoder layer with a different signal in each."""
    found = {}
    for place, (name, n, m) in enumerate(
        [("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", 16, hidden), ("mlp.up_proj", wide, hidden)]
    ):
        strength = 1.5 + (7 * index + 3 * place) % 5
        found[f"model.layers.{index}.{name}.weight"] = planted(n, m, [strength], seed=seed + place).float()
        if bias and "q_proj" in name:
            found[f"model.layers.{index}.{name}.bias"] = torch.zeros(n)
    found[f"model.layers.{index}.input_layernorm.weight"] = torch.ones(hidden)
    return found


def weights(layers=12, **kwargs):
    found = {"model.embed_tokens.weight": noise(64, 32).float(), "model.norm.weight": torch.ones(32)}
    for index in range(layers):
        found |= layer(index, seed=100 * index, **kwargs)
    return found


def save(folder, tensors, *, shards=1):
    """Write a model folder (config.json is a stub); returns its weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    names = list(tensors)
    files = []
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({key: tensors[key].contiguous() for key in names[shard::shards]}, folder / name)
        files.append(folder / name)
    if shards > 1:
        index = {key: files[place % shards].name for place, key in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(__import__("json").dumps({"weight_map": index}))
    return files


def energy(strengths, n, m, std=0.02):
    return sum(value**2 for value in strengths) * std**2 * math.sqrt(n * m)
