"""A file with tasks only: what `evaluate` of a recipe holds, for models that need no recipe."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from luthier.recipe.parts import Parts
from luthier.recipe.positions import Document
from luthier.recipe.rules import apply_rules
from luthier.recipe.schema import EvaluateSection
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["is_tasks_file", "load_tasks_file"]


def is_tasks_file(path: Path) -> bool:
    """Whether a file has `tasks` and no `model` at its top; anything unreadable is left to the recipe's reader."""
    try:
        value = parse_yaml(path.read_text("utf-8"), origin=str(path)).value
    except (OSError, UnicodeDecodeError, ValueError):
        return False
    return isinstance(value, dict) and "tasks" in value and "model" not in value


def load_tasks_file(path: Path) -> EvaluateSection:
    """The section.

    Raises:
        RecipeError: all that is wrong, with its line.
    """
    document = parse_yaml(path.read_text("utf-8"), origin=str(path))
    if document.problems or not document.readable:
        raise RecipeError(problems=document.in_order(document.problems))
    try:
        section = EvaluateSection.model_validate(document.value)
    except ValidationError as error:
        raise RecipeError(problems=document.in_order(_problems(document, error))) from error
    problems = apply_rules(
        Parts(tasks=dict(enumerate(section.tasks)), judge=section.judge),
        lambda key, *, on="value": document.locate(_below(key), on=on),
    )
    if problems:
        raise RecipeError(problems=document.in_order(problems))
    return section


def _below(key: str) -> str:
    return key.removeprefix("evaluate.")


def _problems(document: Document, error: ValidationError) -> list[Problem]:
    found = []
    for entry in error.errors(include_url=False):
        path = tuple(entry["loc"])
        code = {"extra_forbidden": "C102", "missing": "C104"}.get(entry["type"], "C103")
        message = f"{'.'.join(map(str, path))}: {entry['msg']}"
        found.append(document.place(path, on="key").problem(code, message))
    return found
