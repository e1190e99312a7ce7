"""Hold plain values against the schema; one problem for each wrong value, at its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from luthier.recipe.describe import allowed, choices, default_of, field_at, got, section_of
from luthier.recipe.nearest import near, sections, suggest
from luthier.recipe.optimizers import REFUSED
from luthier.recipe.positions import Document, KeyPath, dotted
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import Problem

__all__ = ["MAX_PROBLEMS", "fill_empty_sections", "schema_problems", "validate", "validate_as"]

MAX_PROBLEMS = 100
"""Shown at once; a file with more is not a recipe."""

_YES_NO = {"no": False, "off": False, "n": False, "yes": True, "on": True, "y": True}
_Wrong = dict[KeyPath, list[dict[str, Any]]]
_Model = TypeVar("_Model", bound=BaseModel)


def fill_empty_sections(value: dict[str, Any], model: type[BaseModel] = Recipe) -> dict[str, Any]:
    """A section key without keys below it (`train:`, all its lines commented out) is an empty section."""
    result = dict(value)
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and name in result:
            if result[name] is None:
                result[name] = {}
            if isinstance(result[name], dict):
                result[name] = fill_empty_sections(result[name], section)
    return result


def validate(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or every reason why the document is none."""
    if not isinstance(document.value, dict):
        message = f"a recipe is a mapping of sections (model, data, ...), got {got(document.value)}"
        place = document.place(())
        hint = "`luthier init DATA` writes a recipe to start from"
        return None, [place.problem("C103", message, hint=hint)]
    return validate_as(Recipe, document)


def validate_as(model: type[_Model], document: Document) -> tuple[_Model | None, list[Problem]]:
    """The same for any file of our own that is made of sections; `document.value` is a mapping."""
    value = fill_empty_sections(document.value, model)
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, schema_problems(document, value, error, model)


def schema_problems(
    document: Document, value: Mapping[str, Any], error: ValidationError, model: type[BaseModel] = Recipe
) -> list[Problem]:
    """pydantic's errors, one for each wrong value, in our words."""
    wrong: _Wrong = {}
    for entry in error.errors(include_url=False, include_input=False):
        path = _data_path(entry, value)
        if not any(path[:depth] in document.bad for depth in range(len(path) + 1)):
            wrong.setdefault(path, []).append(dict(entry))
    # Of a union, the branch that was followed deepest is the one that was meant.
    parents = {path[:depth] for path in wrong for depth in range(len(path))}
    deepest = [path for path in wrong if path not in parents or _is_section_path(path, model)]
    unknown = [path for path in deepest if _kind(wrong[path]) == "extra_forbidden"][:MAX_PROBLEMS]
    taken = {(*path[:-1], meant) for path in unknown if (meant := _meant(path, model)) is not None}
    problems: list[Problem] = []
    for path in deepest:
        if _kind(wrong[path]) == "missing" and path in taken:
            continue  # the misspelt key beside it is reported
        if len(problems) == MAX_PROBLEMS:
            message = f"and {len(deepest) - MAX_PROBLEMS} more problems"
            problems.append(
                Problem(code="C101", message=message, file=document.origin, line=document.text.count("\n") + 1)
            )
            break
        problems.append(_problem(document, value, path, wrong[path], model))
    return problems


def _kind(entries: list[dict[str, Any]]) -> str:
    return str(entries[0]["type"])


def _is_section_path(path: KeyPath, model: type[BaseModel]) -> bool:
    annotation, _ = field_at(model, path)
    return section_of(annotation) is not None


def _data_path(entry: Mapping[str, Any], value: Any) -> KeyPath:
    """The part of pydantic's location that exists in the data; the rest are names of union branches."""
    path: list[str | int] = []
    current = value
    location = entry["loc"]
    for index, part in enumerate(location):
        known = (isinstance(current, dict) and part in current) or (
            isinstance(current, list) and isinstance(part, int) and part < len(current)
        )
        if known:
            path.append(part)
            current = current[part]
        elif entry["type"] == "missing" and index == len(location) - 1:
            path.append(part)
    return tuple(path)


def _section_name(path: KeyPath) -> str:
    """The name in `sections()` of the section at a path."""
    return ".".join("*" if isinstance(part, int) else part for part in path)


def _meant(path: KeyPath, model: type[BaseModel]) -> str | None:
    """The key of the same section that an unknown key is nearest to."""
    found = near(str(path[-1]), sections(model).get(_section_name(path[:-1]), ()))
    return found[0] if found else None


def _problem(
    document: Document, value: Mapping[str, Any], path: KeyPath, entries: list[dict[str, Any]], model: type[BaseModel]
) -> Problem:
    kind, parent = _kind(entries), dotted(path[:-1])
    if kind == "extra_forbidden":
        place = document.place(path, on="key")
        message = f'unknown key "{path[-1]}"' + (f" in {parent}" if parent else "")
        return place.problem("C102", message, hint=suggest(str(path[-1]), _section_name(path[:-1]), model))
    annotation, field = field_at(model, path)
    if kind == "missing":
        message = f'missing key "{path[-1]}"' + (f" in {parent}" if parent else "") + f": {allowed(annotation)}"
        description = (field.description if field else None) or ""
        return document.place(path[:-1], on="key").problem("C104", message, hint=description.split("; ")[0] or None)
    return _wrong_value(document, value, path, model)


def _wrong_value(document: Document, value: Any, path: KeyPath, model: type[BaseModel]) -> Problem:
    current = value
    for part in path:
        current = current[part]
    annotation, field = field_at(model, path)
    words = allowed(annotation, field.metadata if field else [])
    if isinstance(current, list) and not current:
        words += ", not empty"
    default = default_of(field) if field else ""
    message = (
        f"`{dotted(path)}` must be {words}" + (f" (default {default})" if default else "") + f"; got {got(current)}"
    )
    place = document.place(path)
    return place.problem("C103", message, hint=_value_hint(annotation, current, document, path))


def _value_hint(annotation: Any, current: Any, document: Document, path: KeyPath) -> str | None:
    words = allowed(annotation)
    if isinstance(current, str):
        if path[-1] == "optim" and current in REFUSED:
            return f"{current} {REFUSED[current]}"
        if "true or false" in words and current.lower() in _YES_NO:
            meant = str(_YES_NO[current.lower()]).lower()
            return f"in YAML 1.2 `{current}` is text: write `{meant}`"
        section = section_of(annotation)
        if section is not None:
            # `method: lora`, `data: {train: rows.jsonl}`: the text is the one key that says what it is.
            required = [name for name, field in section.model_fields.items() if field.is_required()]
            key = next(iter([*required, *(["name"] if "name" in section.model_fields else [])]), None)
            one = f"{{{key}: {current}}}"
            return (f"write [{one}]" if words.startswith("a list of") else f"write {one}") if key else None
        if words.startswith("a list of") and current in choices(annotation):
            return f"write it as a list: [{current}]"
        close = near(current, choices(annotation))
        if close:
            return f'did you mean "{close[0]}"?'
        if "number" in words and _as_number(current) is not None:
            return "write the number without quotes, commas or underscores"
        if "a list of" in words:
            return f"write it as a list: [{current}]"
    if isinstance(current, float) and "whole number" in words and current.is_integer():
        return f"write {int(current)}"
    if "text" in words.split(" ")[:1] and isinstance(current, int | float | bool):
        spot = document.place(path)
        raw = (spot.source or "")[(spot.column or 1) - 1 :][: spot.length] or str(current)
        return f'quote it: "{raw}"'
    return None


def _as_number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
