"""Set and remove keys in the text of a recipe: what a form does to the editor beside it.

Comments, order and quoting of everything else stay. The result is read again and must be the old recipe with this one
change; else nothing is returned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from luthier.recipe.edit import set_value
from luthier.recipe.emit import scalar
from luthier.recipe.positions import Document, KeyPath
from luthier.recipe.yaml12 import copy_plain, parse_yaml
from luthier.runtime.errors import RecipeError

__all__ = ["edit_text"]

_ORIGIN = "recipe.yaml"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.([A-Za-z_][A-Za-z0-9_]*|[0-9]{1,4}))*\Z")


def edit_text(text: str, changes: Sequence[dict[str, Any]]) -> str:
    """The text with all changes, one after the other.

    Args:
        text: A recipe.
        changes: `{"key": dotted, "value": a JSON value}` or `{"key": dotted, "remove": true}`.

    Raises:
        RecipeError: W140: no such change can be made to this text without changing something else.
    """
    for change in changes:
        key = change.get("key")
        if not isinstance(key, str) or not _KEY.match(key):
            raise RecipeError(code="W140", message=f"{str(key)[:80]!r} is no key of a recipe")
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        text = _remove(text, path, key) if change.get("remove") else _set(text, path, key, change.get("value"))
    return text


def _set(text: str, path: KeyPath, key: str, value: Any) -> str:
    document = _read(text)
    wanted = copy_plain(document.value)
    if not _put(wanted, path, value):
        raise _refused(key)
    spot = document.spots.get(path)
    shown = _flow(value)
    if spot is not None and spot.value[0] < spot.value[1]:
        start, end = spot.value
        edited = text[:start] + shown + _rest(text[end:], isinstance(document_value(document, path), dict | list))
    elif len(path) == 1 and spot is None:
        edited = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{key}: {shown}\n"
    elif len(path) == 2 and isinstance(value, str | int | float | bool) and all(isinstance(part, str) for part in path):
        return set_value(text, key, value, origin=_ORIGIN)
    else:
        raise _refused(key)
    return _proven(edited, wanted, key)


def _remove(text: str, path: KeyPath, key: str) -> str:
    document = _read(text)
    spot = document.spots.get(path)
    if spot is None:
        return text
    wanted = copy_plain(document.value)
    holder: Any = wanted
    for part in path[:-1]:
        holder = holder[part]
    del holder[path[-1]]
    start = text.rfind("\n", 0, spot.key[0]) + 1
    stop = text.find("\n", max(spot.value[1], spot.key[1]))
    edited = text[:start] + (text[stop + 1 :] if stop >= 0 else "")
    if not holder and len(path) > 1:  # a section with nothing in it stays as an empty one
        outer: Any = wanted
        for part in path[:-2]:
            outer = outer[part]
        outer[path[-2]] = None
    return _proven(edited, wanted, key)


def document_value(document: Document, path: KeyPath) -> Any:
    """The value at a path that the document has."""
    value = document.value
    for part in path:
        value = value[part]
    return value


def _put(value: Any, path: KeyPath, new: Any) -> bool:
    last: Any = path[-1]
    for part in path[:-1]:
        if isinstance(value, dict) and isinstance(part, str):
            if not isinstance(value.get(part), dict | list):
                value[part] = {}
        elif not (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            return False
        value = value[part]
    if isinstance(value, list) and not (isinstance(last, int) and last < len(value)):
        return False
    if not isinstance(value, dict | list):
        return False
    value[last] = new
    return True


def _read(text: str) -> Document:
    document = parse_yaml(text, origin=_ORIGIN)
    if document.value is None and not document.problems:
        document.value = {}
    if document.problems or not isinstance(document.value, dict):
        raise RecipeError(problems=document.problems or [document.place(()).problem("C101", "this is no recipe")])
    return document


def _proven(edited: str, wanted: Any, key: str) -> str:
    again = parse_yaml(edited, origin=_ORIGIN)
    value = {} if again.value is None else again.value
    if again.problems or value != wanted:
        raise _refused(key)
    return edited


def _refused(key: str) -> RecipeError:
    return RecipeError(
        code="W140", message=f"`{key}` cannot be changed in this text without changing something else",
        hint="write it there by hand",
    )  # fmt: skip


def _rest(text: str, block: bool) -> str:
    """What follows a value; a block of lines ends with its line feed, which the new value needs back."""
    return f"\n{text}" if block and text and not text.startswith(("\n", "\r", " ", ",", "}", "]")) else text


def _flow(value: Any) -> str:
    """A value on one line; JSON is YAML."""
    if value is None:
        return "null"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else scalar(value)
