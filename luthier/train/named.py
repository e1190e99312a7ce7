"""Optimizers that are not ours, by transformers' own factory (`Trainer.get_optimizer_cls_and_kwargs`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from luthier.model.quiet import quiet_libraries
from luthier.recipe.schema import TrainSection

__all__ = ["make_named"]


def make_named(
    groups: Sequence[dict[str, Any]], section: TrainSection, *, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer as transformers' Trainer would make it; groups have their own `lr` and `weight_decay`."""
    from transformers import Trainer, TrainingArguments

    # transformers hands `optim_args` of bitsandbytes' RMSprop on as text: these are given to the class itself.
    as_text = not section.optim.startswith("rmsprop_bnb")
    settings = ",".join(f"{key}={value}" for key, value in section.optim_args.items())
    with quiet_libraries():
        arguments = TrainingArguments(
            output_dir=os.path.join(tempfile.gettempdir(), "luthier-unused"),  # never written to
            optim=section.optim, optim_args=settings if as_text else None, learning_rate=learning_rate,
            adam_beta1=section.adam_beta1, adam_beta2=section.adam_beta2, adam_epsilon=section.adam_epsilon,
            weight_decay=section.weight_decay, report_to="none", use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        made, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if not as_text:
            keywords.update(section.optim_args)
        optimizer: torch.optim.Optimizer = made(list(groups), **keywords)
    return optimizer
