"""Values as JSON for a page: finite numbers, and text in which nothing is invisible."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from luthier.report.read import printable

__all__ = ["clean", "dumps", "finite", "read_json", "without"]


def clean(value: Any) -> Any:
    """A JSON value with NaN and infinity as null and every text `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {printable(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def without(value: Any, place: str) -> Any:
    """A JSON value whose texts name paths below `place` relative to it: what a page shows is no map of the machine."""
    if isinstance(value, str):
        return value.replace(f"{place}/", "")
    if isinstance(value, Mapping):
        return {without(key, place): without(item, place) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without(item, place) for item in value]
    return value


def finite(value: Any) -> float | None:
    """A number, if it is one and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def dumps(value: Any) -> str:
    """Compact JSON; everything must be finite."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def read_json(path: Any) -> dict[str, Any]:
    """A JSON object of a run; empty where there is none, or half of one.

    Runs are looked at while they are written and after they were damaged: a page shows what is there.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
