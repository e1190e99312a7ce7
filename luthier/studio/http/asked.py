"""What a request asks for: query and body, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from luthier.runtime.errors import Problem, RecipeError

__all__ = ["body_of", "field", "number", "page_of", "word"]

_LIMIT = 500
_MOST = 1 << 40
_WORDS = 400


def page_of(query: Mapping[str, str], *, default: int = 50) -> tuple[int, int]:
    """`offset` and `limit`.

    Raises:
        RecipeError: W103.
    """
    return number(query, "offset", 0, least=0, most=_MOST), number(query, "limit", default, least=1, most=_LIMIT)


def number(query: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    """A whole number of the query.

    Raises:
        RecipeError: W103.
    """
    text = query.get(name, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 15 and least <= int(text) <= most):
        raise RecipeError(
            code="W103", message=f"{name} must be a whole number from {least:,} to {most:,}; got {text[:40]!r}"
        )
    return int(text)


def word(query: Mapping[str, str], name: str, default: str = "") -> str:
    """A text of the query, cut to a reasonable length.

    Raises:
        RecipeError: W103: longer than that.
    """
    text = query.get(name) or default
    if len(text) > _WORDS:
        raise RecipeError(code="W103", message=f"{name} is longer than {_WORDS} characters")
    return text


async def body_of(request: Request, names: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The JSON object in a body; all that is wrong with it at once.

    Args:
        request: The request.
        names: Allowed keys with their types; those that are missing are missing in the answer.

    Raises:
        RecipeError: W103.
    """
    try:
        value = json.loads(await request.body() or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RecipeError(code="W103", message=f"the body is no JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise RecipeError(code="W103", message="the body must be a JSON object")
    problems = [
        Problem(code="W103", message=f"unknown field {str(name)[:60]!r}; allowed: {', '.join(names)}")
        for name in value
        if name not in names
    ]
    problems += [
        Problem(code="W103", message=f"{name} must be {_called(kinds)}, not {_kind(value[name])}")
        for name, kinds in names.items()
        if name in value and not _is(value[name], kinds)
    ]
    if problems:
        raise RecipeError(problems=problems)
    return value


def field(body: Mapping[str, Any], name: str) -> Any:
    """A field that must be there.

    Raises:
        RecipeError: W103.
    """
    if name not in body:
        raise RecipeError(code="W103", message=f"the body needs {name}")
    return body[name]


def _is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))


_NAMES = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object",
          type(None): "null"}  # fmt: skip


def _called(kinds: type | tuple[type, ...]) -> str:
    return " or ".join(_NAMES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
