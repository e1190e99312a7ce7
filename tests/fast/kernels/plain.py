"""Every op of `luthier/fast/kernels` once more, written independently: fp64, out of place, for autograd."""

from __future__ import annotations

import math

import torch


def norm(h, weight, eps, plus_one):
    variance = sum(column**2 for column in h.unbind(1)) / h.shape[1]
    return h / torch.sqrt(variance + eps)[:, None] * (weight + 1 if plus_one else weight)


def rope(x, cos, sin):
    rot = cos.shape[1]
    turned, rest = x[..., :rot], x[..., rot:]
    # rotate_half as a matrix: column j of the result is -x[j + half] or x[j - half]
    half = rot // 2
    matrix = torch.zeros(rot, rot, dtype=x.dtype)
    for j in range(half):
        matrix[j + half, j] = -1.0
        matrix[j, j + half] = 1.0
    return torch.cat([turned * cos[:, None] + turned @ matrix * sin[:, None], rest], dim=-1)


def activation(x, act):
    if act == "silu":
        return x / (1 + torch.exp(-x))
    if act == "gelu":
        return x * torch.special.ndtr(x)
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def glu(gate_up, act):
    f = gate_up.shape[1] // 2
    return activation(gate_up[:, :f], act) * gate_up[:, f:]


def cross_entropy(raw, ids, weights, smoothing, scale, softcap):
    z = raw * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    p = torch.exp(z) / torch.exp(z).sum(dim=1, keepdim=True)
    target = torch.full_like(p, smoothing / p.shape[1])
    target[torch.arange(len(ids)), ids] += 1 - smoothing
    loss = (-(target * torch.log(p)).sum(dim=1) * weights).sum()
    correct = sum(row.tolist().index(max(row.tolist())) == int(y) for row, y in zip(z, ids, strict=True))
    return loss, correct


def wide(m, width, extra, *, generator, dtype=torch.float64):
    """A view (m, width) of a wider random buffer."""
    return torch.randn(m, width + extra, generator=generator, dtype=torch.float64).to(dtype)[:, :width]
