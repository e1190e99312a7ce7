"""Options of `luthier data filter` as the section `data.filters` of a recipe, and the tokenizer it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from luthier.recipe.filter_schema import FilterSection
    from luthier.recipe.objective_kind import RowKind

__all__ = ["BY_DEFAULT", "filter_settings", "listed_keys", "tokenizer_for"]

BY_DEFAULT = ("encoding", "pii", "echo", "endings", "refusals", "boilerplate", "repetition")
"""Filters that need no setting."""


def listed_keys(drop: list[str] | None, keep: list[str] | None) -> list[str]:
    """--drop-listed and --keep-listed as keys of data.filters.

    Raises:
        RecipeError: both are given.
    """
    if drop and keep:
        raise RecipeError(code="C110", message="--drop-listed and --keep-listed exclude each other", hint="name one")
    if not drop and not keep:
        return []
    return [f"listed.files={json.dumps(drop or keep)}", f"listed.action={'drop' if drop else 'keep'}"]


def filter_settings(use: str | None, sets: list[str], recipe: Path | None, kind: RowKind) -> FilterSection:
    """The options as the section of a recipe.

    Raises:
        RecipeError: all that is wrong with them.
    """
    from pydantic import ValidationError

    from luthier.recipe.filter_rules import filter_rules
    from luthier.recipe.filter_schema import FILTERS, FilterSection
    from luthier.recipe.positions import nowhere

    value = _of_recipe(recipe)
    names = [] if use is None else [name for name in use.split(",") if name]
    unknown = [name for name in names if name not in FILTERS]
    if unknown:
        message = f"--use: no filter is called {', '.join(unknown)}; there are {', '.join(FILTERS)}"
        raise RecipeError(code="C103", message=message)
    if use is None and not sets and recipe is None:
        names = list(BY_DEFAULT)
    if use is not None:
        value = {name: item for name, item in value.items() if name in (*names, "answers")}
    for name in names:
        value.setdefault(name, [] if name == "python" else {})
    _set_keys(value, sets)
    try:
        section = FilterSection.model_validate(value)
    except ValidationError as error:
        raise RecipeError(problems=[_invalid(entry) for entry in error.errors()]) from error
    problems = list(filter_rules(section, nowhere, kind=kind))
    if problems:
        raise RecipeError(problems=problems)
    return section


def _of_recipe(recipe: Path | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    from luthier.recipe.load import load_recipe

    filters = load_recipe(recipe, []).recipe.data.filters
    if filters is None:
        raise RecipeError(code="C110", message=f"{recipe} has no `data.filters`", hint="add it, or leave --recipe out")
    value: dict[str, Any] = filters.model_dump(mode="json", exclude_unset=True)
    return value


def _set_keys(value: dict[str, Any], sets: list[str]) -> None:
    from luthier.recipe.overrides import override_value

    problems: list[Problem] = []
    for text in sets:
        key, equals, told = text.partition("=")
        path = key.removeprefix("data.filters.").split(".")
        if not equals or not all(path):
            hint = "write filter.key=value, for instance pii.action=drop"
            problems.append(Problem(code="C107", message=f"--set {text} sets no key", hint=hint))
            continue
        item, wrong = override_value(told, origin=f"--set {text}")
        problems += wrong
        place = value
        for part in path[:-1]:
            below = place.get(part)
            place[part] = below if isinstance(below, dict) else {}
            place = place[part]
        place[path[-1]] = item
    if problems:
        raise RecipeError(problems=problems)


def _invalid(entry: Any) -> Problem:
    from luthier.recipe.describe import allowed, field_at
    from luthier.recipe.filter_schema import FilterSection

    path = tuple(entry["loc"])
    key = ".".join(map(str, path))
    if entry["type"] == "missing":
        return Problem(code="C104", message=f"`{key}` is needed", hint=f"--set {key}=...")
    if entry["type"] == "extra_forbidden":
        return Problem(code="C102", message=f"`{key}` is no key of data.filters", hint="see docs/reference/recipe.md")
    try:
        annotation, field = field_at(FilterSection, path)
        words = allowed(annotation, field.metadata if field else []).replace(" or null", "")
        message = f"`{key}` must be {words}; got {entry['input']!r:.60}"
    except (KeyError, AttributeError, TypeError, ValueError):
        message = f"`{key}`: {entry['msg']}; got {entry['input']!r:.60}"
    return Problem(code="C103", message=message)


def tokenizer_for(section: FilterSection, name: str | None, recipe: Path | None) -> Any:
    """The tokenizer, if something counts tokens; loading one takes seconds.

    Raises:
        RecipeError: one is named, and nothing does.
    """
    if section.length is None or section.length.unit != "tokens":
        if name is not None:
            message = "--tokenizer would have no effect: no filter counts tokens"
            raise RecipeError(code="C111", message=message, hint="remove it, or add --set length.max_answer=800")
        return None
    if name is None and recipe is None:
        return None
    from luthier.model.tokenizer import load_tokenizer
    from luthier.recipe.load import load_recipe
    from luthier.recipe.schema import ModelSection

    if name is not None:
        return load_tokenizer(ModelSection(name_or_path=name))
    assert recipe is not None
    return load_tokenizer(load_recipe(recipe, []).recipe.model)


# -- what is shown
