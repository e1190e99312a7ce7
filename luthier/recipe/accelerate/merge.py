"""What a configuration of accelerate says, put into a recipe; the recipe's own words stand against contradictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from luthier.recipe.accelerate.reading import Reading
from luthier.recipe.accelerate.source import read_config
from luthier.recipe.accelerate.translate import Processes, read_source
from luthier.recipe.facts import Taken
from luthier.recipe.paths import expand, missing_path
from luthier.recipe.positions import Locate, Place
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import Problem

__all__ = ["config_of", "locate_taken", "merge", "with_config"]


def config_of(recipe: Recipe) -> tuple[Reading, Processes] | list[Problem]:
    """What the file of `distributed.accelerate_config` says; problems where it cannot be read."""
    text = recipe.distributed.accelerate_config or ""
    missing = missing_path(text) if text else ("`distributed.accelerate_config` is an empty path", None)
    if missing is not None:
        return [Problem(code="C130", message=missing[0], hint=missing[1])]
    source, problems = read_config(Path(expand(text)))
    if source is None:
        return problems
    return read_source(source, recipe)


def merge(recipe: Recipe, taken: Sequence[Taken], *, title: str) -> tuple[Recipe, list[Problem]]:
    """The recipe with values taken, and a problem for each that it has otherwise by its own words."""
    problems = []
    for one in taken:
        own = _own(recipe, one.key)
        if own is not None and own != one.value:
            message = f"`{one.key}` is {_shown(own)} in the recipe, and {_shown(one.value)} by {one.reason}"
            hint = f"change one of them, or leave `{one.key}` out of the recipe: then {title} says it"
            problems.append(one.place.problem("L184", message, hint=hint))
        elif own is None:
            recipe = _with(recipe, one.key, one.value)
    return recipe, problems


def locate_taken(locate: Locate, taken: Sequence[Taken]) -> Locate:
    """Places of keys; those that were taken stand where they were taken from."""
    places = {one.key: one.place for one in taken}

    def found(key: str, *, on: Any = "value") -> Place:
        return places.get(key) or locate(key, on=on)

    return found


def _own(recipe: Recipe, key: str) -> Any:
    """A value that the recipe itself says; None where it leaves the key to others."""
    section_name, name = key.split(".")
    section: BaseModel = getattr(recipe, section_name)
    value = getattr(section, name)
    return None if value == "auto" or name not in section.model_fields_set else value


def _with(recipe: Recipe, key: str, value: Any) -> Recipe:
    section_name, name = key.split(".")
    section: BaseModel = getattr(recipe, section_name)
    return recipe.model_copy(update={section_name: section.model_copy(update={name: value})})


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_config(recipe: Recipe, locate: Locate) -> tuple[Recipe, list[Problem], Locate]:
    """The recipe with what the file of `distributed.accelerate_config` says, if it names one; and every problem."""
    if recipe.distributed.accelerate_config is None:
        return recipe, [], locate
    found = config_of(recipe)
    if isinstance(found, list):
        place = locate("distributed.accelerate_config")
        return (
            recipe,
            [one if one.file else place.problem(one.code, one.message, hint=one.hint) for one in found],
            locate,
        )
    reading, _ = found
    merged, problems = merge(recipe, reading.taken, title=reading.source.title)
    return merged, [*reading.problems, *problems], locate_taken(locate, reading.taken)
