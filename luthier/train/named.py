"""Optimizers that are not ours, by transformers' own factory (`Trainer.get_optimizer_cls_and_kwargs`)."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from luthier.model.quiet import quiet_libraries
from luthier.recipe.schema import TrainSection

__all__ = ["make_named"]


def make_named(
    groups: Sequence[dict[str, Any]], section: TrainSection, *, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer as transformers' Trainer would make it; groups have their own `lr` and `weight_decay`.

    The factory gets the fields of `TrainingArguments` that it reads: making the real one would reset accelerate's
    state of this process.
    """
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    # transformers hands some `optim_args` on as text, and takes "False" for true: these go to the class itself.
    as_text = not section.optim.startswith(("rmsprop_bnb", "stable_adamw"))
    settings = ",".join(f"{key}={value}" for key, value in section.optim_args.items())
    arguments: Any = SimpleNamespace(
        optim=OptimizerNames(section.optim), optim_args=settings if as_text else None, learning_rate=learning_rate,
        adam_beta1=section.adam_beta1, adam_beta2=section.adam_beta2, adam_epsilon=section.adam_epsilon,
        weight_decay=section.weight_decay,
    )  # fmt: skip
    with quiet_libraries():
        made, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if not as_text:
            keywords.update(section.optim_args)
        optimizer: torch.optim.Optimizer = made(list(groups), **keywords)
    return optimizer
