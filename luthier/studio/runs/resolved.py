"""`resolved.yaml` as a list: each key with its value, and the reason of a value that the recipe left open."""

from __future__ import annotations

from typing import Any

from luthier.recipe.positions import Document, dotted
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import LuthierError
from luthier.studio.clean import clean

__all__ = ["resolved_values"]


def resolved_values(text: str) -> list[dict[str, Any]]:
    """`key`, `value`, `reason` of every leaf, in file order; reasons are the comments that `resolved_yaml` wrote."""
    try:
        document = parse_yaml(text, origin="resolved.yaml")
    except LuthierError:
        return []
    if document.problems or not isinstance(document.value, dict):
        return []
    found: list[dict[str, Any]] = []
    _leaves(document.value, (), document, found)
    return found


def _leaves(value: Any, path: tuple[str | int, ...], document: Document, found: list[dict[str, Any]]) -> None:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _leaves(item, (*path, str(key)), document, found)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for place, item in enumerate(value):
            _leaves(item, (*path, place), document, found)
    else:
        found.append({"key": dotted(path), "value": clean(value), "reason": _reason(path, document)})


def _reason(path: tuple[str | int, ...], document: Document) -> str | None:
    """The comment behind a value on its line."""
    spot = document.spots.get(path)
    if spot is None:
        return None
    end = spot.value[1]
    stop = document.text.find("\n", end)
    rest = document.text[end : stop if stop >= 0 else len(document.text)]
    return clean(rest.partition("#")[2].strip()) or None if rest.lstrip().startswith("#") else None
