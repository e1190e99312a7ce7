"""Say in words what a recipe key takes, and what it got instead."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["allowed", "choices", "default_of", "field_at", "got", "item_type", "section_of"]


def allowed(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """`a number > 0 or "auto"`, from a type and its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extra: list[Any] = []
        for item in arguments[1:]:
            extra.extend(item.metadata if isinstance(item, FieldInfo) else [item])
        return allowed(arguments[0], [*metadata, *extra])
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(argument, metadata) for argument in arguments)
    if origin is Literal:
        shown = [_quoted(value) for value in arguments]
        return shown[0] if len(shown) == 1 else "one of " + ", ".join(shown)
    if origin is list:
        return f"a list of {_plural(arguments[0])}"
    if origin is dict:
        return "a mapping" if arguments[1] is Any else f"a mapping from text to {allowed(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a mapping"
    if annotation is type(None):
        return "null"
    bounds = _bounds(metadata)
    pattern = next((item.pattern for item in metadata if getattr(item, "pattern", None)), None)
    named = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(annotation, "a value")
    if pattern:
        named += f" that matches {pattern}"
    return f"{named} {bounds}" if bounds else named


def choices(annotation: Any) -> list[str]:
    """Every literal text that a type accepts."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        return [word for argument in get_args(annotation) for word in choices(argument)]
    return []


def got(value: Any) -> str:
    """What stood there: `the text "fast"`, `0`, `a list`, `nothing`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return f"the text {json.dumps(text, ensure_ascii=False)}"
    if isinstance(value, int | float):
        return f"{value!r}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def default_of(field: FieldInfo) -> str:
    """The default as YAML would show it; empty if the key is required or its default is a section."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, BaseModel) else json.dumps(value)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside a type, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := section_of(argument)) is not None:
            return found
    return None


def item_type(annotation: Any) -> Any:
    """The type of the items of a list or of the values of a mapping; None for anything else."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return next((found for argument in arguments if (found := item_type(argument)) is not None), None)
    if origin is Annotated:
        return item_type(arguments[0])
    return ({list: 0, dict: 1}.get(origin) is not None and arguments[{list: 0, dict: 1}[origin]]) or None


def field_at(model: type[BaseModel], path: tuple[str | int, ...]) -> tuple[Any, FieldInfo | None]:
    """Type at a path and, when the path ends at a key of a section, its field. (None, None) if there is none."""
    current: Any = model
    field: FieldInfo | None = None
    for part in path:
        section = section_of(current) if item_type(current) is None else None
        field = None
        if section is not None:
            if not isinstance(part, str) or part not in section.model_fields:
                return None, None
            field = section.model_fields[part]
            current = field.annotation
        else:
            current = item_type(current)
    return current, field


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plural(annotation: Any) -> str:
    section = section_of(annotation)
    if section is not None:
        return "mappings"
    words = choices(annotation)
    return " | ".join(_quoted(word) for word in words) if words else {str: "texts"}.get(annotation, "values")


def _bounds(metadata: tuple[Any, ...] | list[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    parts = []
    for item in metadata:
        for name, sign in signs.items():
            bound = getattr(item, name, None)
            if bound is not None:
                parts.append(f"{sign} {bound:g}")
    return " and ".join(parts)
