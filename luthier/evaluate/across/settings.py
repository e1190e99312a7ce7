"""Values that are not the same in all runs. Equal ones are left out: of 150 settings a reader wants the three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.across.read import ComparedRun

__all__ = ["ABSENT", "Difference", "facts_that_differ", "settings_that_differ"]

ABSENT = "(absent)"
"""Stands for a key that a run does not have: another method, another objective, an older Luthier."""
_NAMES_OF_THE_RUN = {"output_dir", "version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One key."""

    key: str
    """Dotted."""
    values: tuple[Any, ...]
    """Of each run, in their order."""
    reasons: tuple[str, ...]
    """Why a derived value is what it is; empty where the recipe said it."""

    def to_json(self) -> dict[str, Any]:
        """As lists."""
        return {"key": self.key, "values": list(self.values), "reasons": list(self.reasons)}


def settings_that_differ(runs: Sequence[ComparedRun]) -> tuple[Difference, ...]:
    """Values of the resolved recipes, with the reason of each derived one; not the run's own folder."""
    flat = [_flat(run.settings) for run in runs]
    return _differences(flat, [run.reasons for run in runs], leave_out=_NAMES_OF_THE_RUN)


def facts_that_differ(runs: Sequence[ComparedRun]) -> tuple[Difference, ...]:
    """Hashes of base and data, commit, versions, machine: what the manifests say and no recipe holds."""
    flat = []
    for run in runs:
        manifest = run.manifest
        base = {key: value for key, value in (manifest.get("base") or {}).items() if isinstance(value, str)}
        known = {key: manifest.get(key) for key in ("data", "sources", "code", "versions", "hardware")}
        flat.append(_flat({"base": base, **known}))
    return _differences(flat, [{} for _ in runs], leave_out=set())


def _differences(
    flat: Sequence[Mapping[str, Any]], reasons: Sequence[Mapping[str, str]], *, leave_out: set[str]
) -> tuple[Difference, ...]:
    found = []
    for key in dict.fromkeys(key for values in flat for key in values):
        values = tuple(one.get(key, ABSENT) for one in flat)
        # 1 and True, 0 and False are equal in Python, and are not the same setting.
        if key not in leave_out and any((type(v), v) != (type(values[0]), values[0]) for v in values):
            found.append(Difference(key=key, values=values, reasons=tuple(one.get(key, "") for one in reasons)))
    return tuple(found)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """One level of dotted keys; a list of plain values stays one value."""
    items: list[tuple[str, Any]]
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat
