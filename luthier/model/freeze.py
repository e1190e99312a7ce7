"""Train some of the original weights: by regular expressions over names, or the last decoder layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from luthier.model.reward import HEAD, is_reward_model
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["decoder_layers", "freeze_all_but", "train_everything"]


def train_everything(model: PreTrainedModel) -> None:
    """Every float weight is trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def freeze_all_but(model: PreTrainedModel, patterns: Sequence[str], *, last_n_layers: int | None) -> list[str]:
    """Freeze all weights but those selected; returns notes about the selection.

    A pattern is searched for anywhere in a parameter's name (`layers\\.1\\.` or `norm`). A shared weight can be
    selected by either of its names.

    Raises:
        RecipeError: a pattern matches nothing or is no regular expression, too many layers, or nothing selected.
    """
    chosen, notes = set(), []
    # remove_duplicate: a tied head is the embedding under a second name.
    named = list(model.named_parameters(remove_duplicate=False))
    problems = []
    for pattern in patterns:
        try:
            found = [name for name, _ in named if re.search(pattern, name)]
        except re.error as error:
            problems.append(
                Problem(
                    code="M322", message=f"`method.trainable` has {pattern!r}, which is no regular expression: {error}"
                )
            )
            continue
        if not found:
            some = ", ".join(sorted({re.sub(r"\.\d+\.", ".N.", name) for name, _ in named})[:6])
            problems.append(
                Problem(
                    code="M322",
                    message=f"`method.trainable` has {pattern!r}, which matches no parameter",
                    hint=f"names here: {some}, ...",
                )
            )
        chosen.update(found)
    if last_n_layers is not None:
        prefix, layers = decoder_layers(model)
        if last_n_layers > len(layers):
            problems.append(
                Problem(
                    code="M323",
                    message=f"`method.last_n_layers` is {last_n_layers}, but the model has {len(layers)} layers",
                    hint=f"at most {len(layers)}",
                )
            )
        first = len(layers) - last_n_layers
        chosen.update(
            name
            for index in range(max(first, 0), len(layers))
            for name, _ in named
            if name.startswith(f"{prefix}.{index}.")
        )
    if not problems and not chosen:
        problems.append(
            Problem(
                code="M322",
                message="`method: freeze` selects nothing",
                hint="give `method.trainable` or `method.last_n_layers`",
            )
        )
    if problems:
        raise RecipeError(problems=problems)
    if is_reward_model(model) and not any(name.startswith(f"{HEAD}.") for name in chosen):
        chosen.update(name for name, _ in named if name.startswith(f"{HEAD}."))
        notes.append(f"the reward head ({HEAD}) is new, and is trained too")
    selected = {id(parameter) for name, parameter in named if name in chosen}
    for _, parameter in named:
        parameter.requires_grad_(id(parameter) in selected)
    shown = {name for name, _ in model.named_parameters()}
    notes += [f"{name} shares its weight with another module; it is trained once" for name in sorted(chosen - shown)]
    return notes


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: the longest ModuleList of equal modules.

    Raises:
        RecipeError: the architecture has no such list.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1
    ]
    if not lists:
        raise RecipeError(
            code="M323",
            message="`method.last_n_layers`: no list of decoder layers found in this architecture",
            hint="use `method.trainable` patterns",
        )
    return max(lists, key=lambda pair: len(pair[1]))
