"""Reward models: a decoder with a head of one output, as transformers' `AutoModelForSequenceClassification` has it.

The layout is the library's (`num_labels: 1`, head `score`), so every tool that loads reward models loads ours: a
folder of a whole model, or an adapter with task type `SEQ_CLS` that holds the head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["HEAD", "is_reward_folder", "is_reward_model", "refuse_generation", "set_up_config", "start_head"]

HEAD = "score"


def is_reward_folder(folder: Path) -> bool:
    """Whether an adapter or a model folder holds a reward model; False for anything else."""
    try:
        adapter = folder / "adapter_config.json"
        if adapter.is_file():
            return bool(json.loads(adapter.read_text("utf-8")).get("task_type") == "SEQ_CLS")
        value = json.loads((folder / "config.json").read_text("utf-8"))
        return any(str(name).endswith("ForSequenceClassification") for name in value.get("architectures") or ())
    except (OSError, ValueError, AttributeError):
        return False


def is_reward_model(model: Any) -> bool:
    """Whether a transformers model (not a PEFT one) has a head of one output."""
    return getattr(getattr(model, HEAD, None), "out_features", None) == 1


def set_up_config(config: Any) -> None:
    """One output; and a padding token, without which the library refuses batches of more than one row."""
    config.num_labels = 1
    config.problem_type = None
    if getattr(config, "pad_token_id", None) is None:
        stop = getattr(config, "eos_token_id", None)
        config.pad_token_id = stop[0] if isinstance(stop, list) else stop


def start_head(model: PreTrainedModel, *, seed: int) -> None:
    """Draw a new head: normal with the model's own spread, from `seed` alone, so that every process draws the same."""
    weight = model.get_submodule(HEAD).weight
    spread = getattr(model.config.get_text_config(decoder=True), "initializer_range", 0.02)
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * spread
    with torch.no_grad():
        weight.copy_(drawn.to(weight.dtype))


def refuse_generation(folder: Path) -> None:
    """A reward model writes no text.

    Raises:
        RecipeError: the folder holds one.
    """
    if is_reward_folder(folder):
        raise RecipeError(
            code="M335", message=f"{folder} is a reward model: it rates answers and writes none",
            hint="load it with transformers' AutoModelForSequenceClassification; docs/preference.md shows how",
        )  # fmt: skip
