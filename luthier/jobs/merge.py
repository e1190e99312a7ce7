"""Recipe keys laid over recipe keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["given", "merged"]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key; where both have a value that is no mapping, the one above counts. Lists are whole values."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def given(keys: Mapping[str, Any], dotted: str) -> bool:
    """Whether a dotted key has a value that is neither null nor `auto`."""
    value: Any = keys
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return value is not None and value != "auto"
