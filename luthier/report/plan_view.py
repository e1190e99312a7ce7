"""Planned against measured: the rows of the report's small table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.report.read import RunFiles
from luthier.report.svg import number

__all__ = ["measured_facts", "plan_rows"]

_COMPARED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("peak memory", "peak_bytes", lambda value: f"{value / 2**30:.2f} GiB"),
    ("seconds a step", "seconds_per_step", lambda value: f"{number(value)} s"),
    ("tokens a second", "tokens_per_second", lambda value: f"{value:,.0f}"),
    ("share of the device's peak rate (MFU)", "mfu", lambda value: f"{value * 100:.1f} %"),
)

_OF_SEVERAL = {"peak_bytes": ", of the process with most", "tokens_per_second": ", all processes together"}


def plan_rows(run: RunFiles) -> list[tuple[str, str, str, str]]:
    """(what, planned, measured, difference in percent of the plan) for what was measured; planned may be a dash."""
    planned = run.measured.get("predicted") or {}
    several = run.train.get("processes", 1) > 1
    rows = []
    for name, key, shown in _COMPARED:
        name += _OF_SEVERAL.get(key, "") if several else ""
        said, found = planned.get(key), run.measured.get(key)
        if found is None:
            continue
        difference = f"{(found / said - 1) * 100:+.1f} %" if said else "\N{EN DASH}"
        rows.append((name, shown(said) if said else "\N{EN DASH}", shown(found), difference))
    return rows


def measured_facts(run: RunFiles) -> list[tuple[str, str]]:
    """(what, value) of what has no counterpart in the plan."""
    measured: dict[str, Any] = run.measured
    facts = []
    if measured.get("seconds_to_first_step") is not None:
        facts.append(("time to first step", f"{number(measured['seconds_to_first_step'])} s"))
    if measured.get("trained_tokens_per_second") is not None:
        facts.append(("trained tokens a second", f"{measured['trained_tokens_per_second']:,.0f}"))
    if size := run.train.get("micro_batch"):
        tokens = f", up to {size['tokens']:,} tokens" if size.get("tokens") else ""
        facts.append(("micro-batch, after memory ran out", f"{size['sequences']} sequence(s){tokens}"))
    return facts
