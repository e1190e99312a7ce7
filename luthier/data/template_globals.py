"""What a chat template may call besides jinja2's own: as transformers offers it (5.17 to 5.23)."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2

__all__ = ["Namespace", "make_dict", "raise_exception", "strftime_now", "to_json"]


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As `json.dumps`; text stays as it is unless the template asks for ASCII."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    """The template refuses these messages."""
    raise jinja2.TemplateError(message)


def strftime_now(format: str) -> str:  # noqa: A002 - the name templates use
    """The local time."""
    return datetime.now().strftime(format)


class _MakeDict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args, **kwargs)


make_dict = _MakeDict()


class Namespace(jinja2.utils.Namespace):
    """A namespace that takes no underscore names (a way out of older sandboxes)."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore in front: {name!r}")
