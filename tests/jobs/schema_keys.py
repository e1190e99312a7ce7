"""Every key of a recipe that takes free text, dotted, `*` for the entries of a list."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from luthier.recipe.schema import Recipe


def text_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    return list(_walk(model, prefix))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        sections = _sections(field.annotation)
        for section in sections:
            yield from _walk(section, f"{prefix}{name}{'.*' if 'list[' in str(field.annotation) else ''}.")
        if _takes_text(field.annotation):
            yield prefix + name


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections(part)]


def _takes_text(annotation: Any) -> bool:
    if annotation is str or annotation is Any:
        return True
    if typing.get_origin(annotation) is typing.Literal:
        return False
    return any(_takes_text(part) for part in typing.get_args(annotation))
