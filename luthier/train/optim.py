"""Optimizers by transformers' names, and which tensors decay.

Weight decay pulls a weight towards 0. That is meant for matrices: a norm's scale pulled to 0
mutes its layer. So norms, biases and every other tensor of fewer than two dimensions are in a
group without decay, found by shape and by name, not by the class of the module (a model's own
RMSNorm is not `nn.LayerNorm`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.kernels import backend
from luthier.recipe.optimizers import SMALL, state_per_element
from luthier.recipe.schema import TrainSection
from luthier.train.adamw8 import AdamW8
from luthier.train.master_adamw import MasterAdamW
from luthier.train.named import make_named
from luthier.train.together import make_muon

__all__ = ["decays", "expected_state_bytes", "is_hidden_matrix", "make_optimizer", "parameter_groups"]


def decays(name: str, tensor: Tensor) -> bool:
    """Whether weight decay applies: matrices that are neither bias nor part of a norm."""
    *_, module, leaf = ["", *name.lower().split(".")]
    return tensor.ndim >= 2 and leaf != "bias" and "norm" not in module


def parameter_groups(
    tensors: Mapping[str, Tensor], weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups with and without decay, one of each for every learning rate, in the order of the names given.

    Args:
        tensors: Trained tensors by name.
        weight_decay: Of matrices that are neither bias nor norm.
        rates: Peak learning rate by name; without it the groups have none, and the optimizer's is theirs.
    """
    found: dict[tuple[float | None, bool], list[Tensor]] = {}
    distinct = dict.fromkeys(rates[name] for name in tensors) if rates is not None else {None: None}
    for rate in distinct:
        for decaying in (True, False):
            found[rate, decaying] = []
    for name, tensor in tensors.items():
        found[rates[name] if rates is not None else None, decays(name, tensor)].append(tensor)
    return [
        {"params": params, "weight_decay": weight_decay if decaying else 0.0}
        | ({} if rate is None else {"lr": rate})
        for (rate, decaying), params in found.items()
        if params
    ]  # fmt: skip


def make_optimizer(
    tensors: Mapping[str, nn.Parameter], section: TrainSection, *, learning_rate: float,
    rates: Mapping[str, float] | None = None, tables: Collection[str] = (), own_kernel: bool = True,
    in_8_bits: Collection[str] | None = None, device: torch.device | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """The optimizer named by `train.optim` over these tensors.

    `adamw_torch_fused` is one kernel for masters, moments and 16-bit weights where Triton is (`master_adamw.py`), and
    torch's own fused AdamW elsewhere; their states are the same.

    Args:
        tensors: What is updated, by parameter name.
        section: `train` of the recipe.
        learning_rate: Peak rate of tensors that `rates` does not name.
        rates: Peak rate by name (`rates.peak_rates`).
        tables: Names of what belongs to embeddings and head, which Muon leaves to AdamW.
        in_8_bits: Names of those whose moments `adamw_8bit` keeps in 8 bits; None: by size.
        device: What computes, where the tensors are not on it (`round_trip.py`); None: theirs.
        own_kernel: False where something else calls `step` (DeepSpeed): torch's AdamW, whatever the device has.
    """
    name = section.optim
    if name == "muon":
        hidden = {name: tensor for name, tensor in tensors.items() if is_hidden_matrix(name, tensor, tables)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in hidden}
        groups, others = (parameter_groups(part, section.weight_decay, rates) for part in (hidden, rest))
        return make_muon(groups, others, section, learning_rate=learning_rate)
    groups = parameter_groups(tensors, section.weight_decay, rates)
    betas = (section.adam_beta1, section.adam_beta2)
    if name in ("adamw_torch_fused", "adamw_torch"):
        fused = name == "adamw_torch_fused"
        if own_kernel and fused and backend(device or next(iter(tensors.values())).device)[0] == "triton":
            return MasterAdamW(groups, lr=learning_rate, betas=betas, eps=section.adam_epsilon)
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=section.adam_epsilon, fused=fused)
    if name == "adamw_8bit":
        chosen = None if in_8_bits is None else [tensors[name] for name in in_8_bits]
        return AdamW8(groups, in_8_bits=chosen, lr=learning_rate, betas=betas, eps=section.adam_epsilon)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, **section.optim_args)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # As transformers' Trainer calls it: the schedule of the recipe decides the rate, nothing else.
        optimizer: torch.optim.Optimizer = Adafactor(
            groups, lr=learning_rate, scale_parameter=False, relative_step=False
        )
        return optimizer
    return make_named(groups, section, learning_rate=learning_rate)


def is_hidden_matrix(name: str, tensor: Tensor, tables: Collection[str]) -> bool:
    """Whether Muon takes it: a matrix, and neither embeddings nor head."""
    return tensor.ndim == 2 and name not in tables


def expected_state_bytes(
    tensors: Mapping[str, Tensor], optim: str, optim_args: Mapping[str, Any] | None = None, *,
    tables: Collection[str] = (), in_8_bits: Collection[str] | None = None,
) -> int:  # fmt: skip
    """Bytes of the optimizer's state after its first step, by the formulas of `recipe/optimizers.py`.

    Adafactor: fp32 means over rows and over columns of a matrix, else one fp32 moment. Counters are left out.
    """
    large, small = state_per_element(optim, optim_args)
    total = 0.0
    for name, tensor in tensors.items():
        elements = int(tensor.numel())
        if optim == "adafactor" and tensor.ndim >= 2:
            total += 4 * (elements // int(tensor.shape[-1]) + elements // int(tensor.shape[-2]))
        elif optim == "muon":
            total += (4 if is_hidden_matrix(name, tensor, tables) else 8) * elements
        elif large != small and (elements >= SMALL if in_8_bits is None else name in in_8_bits):
            moments = round(small / 4)
            total += moments * (elements + 4 * -(-elements // 256))
        else:
            total += small * elements
    return round(total)
