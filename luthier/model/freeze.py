"""Train some of the original weights: by regular expressions over names, or the last decoder layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from luthier.model.reward import HEAD, is_reward_model
from luthier.runtime.errors import Problem, RecipeError
from luthier.spectrum.listing import matching, some_names, unmatched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["decoder_layers", "freeze_all_but", "train_everything", "train_listed"]


def train_everything(model: PreTrainedModel) -> None:
    """Every float weight is trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def train_listed(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Freeze all weights but those of an `unfrozen_parameters` list; returns notes about the selection.

    A pattern is matched from the start of a parameter's name (`model.layers.1.mlp.down_proj`: its weight and, where
    it has one, its bias). A shared weight can be selected by either of its names.

    Raises:
        RecipeError: patterns that match nothing, all of them.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    problems = [
        Problem(
            code="M332", message=f"`unfrozen_parameters` has {pattern!r}, which matches no parameter of this model",
            hint=f"names here: {some_names(names)}",
        )
        for pattern in unmatched(patterns, names)
    ]  # fmt: skip
    if problems:
        raise RecipeError(problems=problems)
    chosen = matching(patterns, names)
    biases = [name for name in chosen if name.endswith(".bias")]
    notes = [f"{len(biases)} biases of chosen modules are trained with them, as other tools do"] if biases else []
    return notes + _train_only(model, chosen)


def _train_only(model: PreTrainedModel, chosen: Iterable[str]) -> list[str]:
    """Turn gradients on for the named parameters and off for all others; notes about shared ones."""
    chosen = set(chosen)
    # remove_duplicate: a tied head is the embedding under a second name.
    named = list(model.named_parameters(remove_duplicate=False))
    notes = []
    if is_reward_model(model) and not any(name.startswith(f"{HEAD}.") for name in chosen):
        chosen.update(name for name, _ in named if name.startswith(f"{HEAD}."))
        notes.append(f"the reward head ({HEAD}) is new, and is trained too")
    selected = {id(parameter) for name, parameter in named if name in chosen}
    for _, parameter in named:
        parameter.requires_grad_(id(parameter) in selected)
    shown = {name for name, _ in model.named_parameters()}
    notes += [f"{name} shares its weight with another module; it is trained once" for name in sorted(chosen - shown)]
    return notes


def freeze_all_but(model: PreTrainedModel, patterns: Sequence[str], *, last_n_layers: int | None) -> list[str]:
    """Freeze all weights but those selected; returns notes about the selection.

    A pattern is searched for anywhere in a parameter's name (`layers\\.1\\.` or `norm`). A shared weight can be
    selected by either of its names.

    Raises:
        RecipeError: a pattern matches nothing or is no regular expression, too many layers, or nothing selected.
    """
    chosen = set()
    # remove_duplicate: a tied head is the embedding under a second name.
    named = list(model.named_parameters(remove_duplicate=False))
    problems = []
    for pattern in patterns:
        try:
            found = [name for name, _ in named if re.search(pattern, name)]
        except re.error as error:
            message = f"`method.trainable` has {pattern!r}, which is no regular expression: {error}"
            hint = "a backslash before a character takes it as it is"
            problems.append(Problem(code="M322", message=message, hint=hint))
            continue
        if not found:
            problems.append(
                Problem(
                    code="M322",
                    message=f"`method.trainable` has {pattern!r}, which matches no parameter",
                    hint=f"names here: {some_names(name for name, _ in named)}",
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
    return _train_only(model, chosen)


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
