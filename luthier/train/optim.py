"""Optimizers by transformers' names, and which tensors decay.

Weight decay pulls a weight towards 0. That is meant for matrices: a norm's scale pulled to 0
mutes its layer. So norms, biases and every other tensor of fewer than two dimensions are in a
group without decay, found by shape and by name, not by the class of the module (a model's own
RMSNorm is not `nn.LayerNorm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.kernels import backend
from luthier.recipe.schema import TrainSection
from luthier.train.adamw8 import AdamW8
from luthier.train.master_adamw import MasterAdamW

__all__ = ["decays", "expected_state_bytes", "make_optimizer", "parameter_groups"]


def decays(name: str, tensor: Tensor) -> bool:
    """Whether weight decay applies: matrices that are neither bias nor part of a norm."""
    *_, module, leaf = ["", *name.lower().split(".")]
    return tensor.ndim >= 2 and leaf != "bias" and "norm" not in module


def parameter_groups(tensors: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups at most: with and without decay, each in the order of the names given."""
    with_decay = [tensor for name, tensor in tensors.items() if decays(name, tensor)]
    without = [tensor for name, tensor in tensors.items() if not decays(name, tensor)]
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(
    tensors: Mapping[str, nn.Parameter], section: TrainSection, *, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer named by `train.optim` over these tensors.

    `adamw_torch_fused` is one kernel for masters, moments and 16-bit weights where Triton is (`master_adamw.py`), and
    torch's own fused AdamW elsewhere; their states are the same.
    """
    groups = parameter_groups(tensors, section.weight_decay)
    betas = (section.adam_beta1, section.adam_beta2)
    if section.optim in ("adamw_torch_fused", "adamw_torch"):
        fused = section.optim == "adamw_torch_fused"
        if fused and backend(next(iter(tensors.values())).device)[0] == "triton":
            return MasterAdamW(groups, lr=learning_rate, betas=betas, eps=section.adam_epsilon)
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=section.adam_epsilon, fused=fused)
    if section.optim == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    if section.optim == "adafactor":
        from transformers.optimization import Adafactor

        # As transformers' Trainer calls it: the schedule of the recipe decides the rate, nothing else.
        optimizer: torch.optim.Optimizer = Adafactor(
            groups, lr=learning_rate, scale_parameter=False, relative_step=False
        )
        return optimizer
    return AdamW8(groups, lr=learning_rate, betas=betas, eps=section.adam_epsilon)


def expected_state_bytes(tensors: Mapping[str, Tensor], optim: str) -> int:
    """Bytes of the optimizer's state after its first step, by formula.

    AdamW: two fp32 moments. In 8 bits: two bytes and two fp32 scales for every 256 elements; tensors
    of fewer than 4,096 elements as AdamW. Adafactor: fp32 means over rows and over columns of a matrix, else one
    fp32 moment. Counters are left out.
    """
    return sum(_state_bytes(tensor, optim) for tensor in tensors.values())


def _state_bytes(tensor: Tensor, optim: str) -> int:
    elements = int(tensor.numel())
    if optim == "sgd":
        return 0
    if optim == "adafactor":
        if tensor.ndim < 2:
            return 4 * elements
        return 4 * (elements // int(tensor.shape[-1]) + elements // int(tensor.shape[-2]))
    if optim == "adamw_8bit" and elements >= 4096:
        return 2 * elements + 2 * 4 * -(-elements // 256)
    return 8 * elements
