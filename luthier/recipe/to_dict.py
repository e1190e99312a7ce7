"""A recipe as plain values, without the keys that have no effect beside the others."""

from __future__ import annotations

from typing import Any

from luthier.recipe.filter_rules import filter_values
from luthier.recipe.objective import objective_values
from luthier.recipe.objective_kind import row_kind
from luthier.recipe.online_rules import unused_in_data
from luthier.recipe.paths import is_folder, looks_local
from luthier.recipe.schema import Recipe
from luthier.recipe.unused import (
    unused_in_decontaminate,
    unused_in_dedup,
    unused_in_method,
    unused_in_mix,
    unused_in_source,
    unused_in_task,
    unused_in_train,
    unused_in_validation,
)

__all__ = ["recipe_to_dict"]


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe, less the keys that have no effect beside the others.

    `recipe_from_dict` and `load_recipe` take it back, and later defaults do not change it.
    """
    value = recipe.model_dump(mode="json")
    data, own = recipe.data, value["data"]
    sources: list[tuple[Any, Any]] = list(zip(data.train, own["train"], strict=True))
    validates = data.validation.path is not None or data.validation.fraction > 0
    _remove(value["method"], unused_in_method(recipe.method))
    if recipe.objective.name == "grpo":
        _remove(own, unused_in_data())
    value["objective"] = objective_values(recipe.objective)
    _remove(value["train"], unused_in_train(recipe.train, validates=validates))
    _remove(own["validation"], unused_in_validation(data.validation))
    if data.filters is not None:
        own["filters"] = filter_values(data.filters, row_kind(recipe.objective.name))
    if data.dedup is not None:
        _remove(own["dedup"], unused_in_dedup(data.dedup))
    if data.mix is not None:
        _remove(own["mix"], unused_in_mix(data.mix))
    if data.decontaminate is not None:
        _remove(own["decontaminate"], unused_in_decontaminate(data.decontaminate))
        sources += zip(data.decontaminate.against, own["decontaminate"].get("against", []), strict=False)
    for source, entry in sources:
        _remove(entry, unused_in_source(source, local=looks_local(source.path), folder=is_folder(source.path)))
    for task, entry in zip(recipe.evaluate.tasks, value["evaluate"]["tasks"], strict=True):
        _remove(entry, unused_in_task(task))
    return value


def _remove(section: dict[str, Any], unused: dict[str, str]) -> None:
    for key in unused:
        if section[key] is not None:
            del section[key]
