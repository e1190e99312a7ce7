"""When a finished stage may be reused, and the words for why it may not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.runs.folder import StageRecord

__all__ = ["differences", "flatten", "why_run"]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted keys: `{"a": {"b": [1]}}` -> `{"a.b.0": 1}`.

    Empty containers stay as values, so that emptying a list is seen as a change.
    """
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: was -> now` for every dotted key that differs, in the order of `now`."""
    before, after = flatten(was), flatten(now)
    keys = [*after, *(key for key in before if key not in after)]
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in keys
        if before.get(key, missing) != after.get(key, missing)
    ]


def why_run(record: StageRecord | None, depends_on: Mapping[str, Any], missing: list[str]) -> str | None:
    """None when the finished stage can be reused, else the reason why it has to run.

    `missing` names files the stage should have left and that are not there.
    """
    if record is None:
        return "not done yet"
    changed = differences(record.depends_on, depends_on)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return "changed: " + "; ".join(changed[:3]) + more
    if missing:
        return "missing: " + ", ".join(missing)
    return None
