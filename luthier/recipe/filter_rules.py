"""Rules inside `data.filters`, and its keys without effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.recipe.filter_schema import FILTERS, FilterSection, JudgeFilter, LengthFilter
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.online_rules import endpoint_rules, split_python
from luthier.recipe.paths import missing_path
from luthier.recipe.positions import Locate
from luthier.runtime.errors import Problem

__all__ = ["filter_rules", "filter_values", "unused_in_filters"]

_BOUNDS = ("prompt", "answer", "total")
_ENDING_KEYS = ("ending_share", "ending_rows")


def filter_rules(
    filters: FilterSection, locate: Locate, *, kind: RowKind | None, prefix: str = "data.filters"
) -> Iterator[Problem]:
    """What cannot be, and keys that were written and have no effect.

    Args:
        filters: the section.
        locate: finds the place of a dotted key.
        kind: of the rows; None if it is not known.
        prefix: dotted key of the section.
    """
    if not filters.named():
        message = f"`{prefix}` names no filter: nothing would be looked at"
        hint = f"name those you want, for instance {{pii: {{}}, refusals: {{}}}}; there are {', '.join(FILTERS)}"
        yield locate(prefix, on="key").problem("C110", message, hint=hint)
    if kind == "prompts":
        message = f"`{prefix}` judges answers, and online RL asks prompts: it is not done there"
        hint = "`luthier data filter FILE --out NEW` writes the rows that stay"
        yield locate(prefix, on="key").problem("C110", message, hint=hint)
    if filters.length is not None:
        yield from _length(filters.length, f"{prefix}.length", locate)
    if filters.judge is not None:
        yield from _judge(filters.judge, f"{prefix}.judge", locate)
    for name, key in (("listed", "files"), ("pii", "kinds"), ("language", "languages")):
        section = getattr(filters, name)
        if section is not None:
            yield from _twice(getattr(section, key), f"{prefix}.{name}.{key}", locate)
    for index, pattern in enumerate(filters.refusals.patterns if filters.refusals else ()):
        try:
            re.compile(pattern)
        except re.error as error:
            key = f"{prefix}.refusals.patterns.{index}"
            yield locate(key).problem("C103", f"`{key}` is not a regular expression: {error}")
    for index, phrase in enumerate(filters.boilerplate.phrases if filters.boilerplate else ()):
        if not phrase.strip():
            key = f"{prefix}.boilerplate.phrases.{index}"
            yield locate(key).problem("C103", f"`{key}` is empty, and would be found in every answer")
    for index, one in enumerate(filters.python):
        missing = missing_path(split_python(one)[0])
        if missing is not None:
            yield locate(f"{prefix}.python.{index}").problem("C130", missing[0], hint=missing[1])
    for index, one in enumerate(filters.listed.files if filters.listed else ()):
        missing = missing_path(one)
        if missing is not None:
            yield locate(f"{prefix}.listed.files.{index}").problem("C130", missing[0], hint=missing[1])
    for (name, key), reason in unused_in_filters(filters, kind).items():
        section = getattr(filters, name) if name else filters
        if key in section.model_fields_set:
            dotted = ".".join(part for part in (prefix, name, key) if part)
            message = f"`{dotted}` would have no effect: {reason}"
            yield locate(dotted, on="key").problem("C111", message, hint="remove it")


def unused_in_filters(filters: FilterSection, kind: RowKind | None) -> dict[tuple[str, str], str]:
    """(filter, key) -> why it has no effect; an empty filter is the section itself."""
    unused: dict[tuple[str, str], str] = {}
    if kind in ("tokens", "prompts"):
        unused["", "answers"] = "the rows of this objective have no answers to choose from"
    if filters.boilerplate is not None and filters.boilerplate.endings == "keep":
        unused |= {("boilerplate", key): "endings: keep looks at no endings" for key in _ENDING_KEYS}
    return unused


def filter_values(filters: FilterSection, kind: RowKind) -> dict[str, Any]:
    """The section as JSON: filters that are in use, without the keys that have no effect."""
    value: dict[str, Any] = filters.model_dump(mode="json")
    for name, key in unused_in_filters(filters, kind):
        del (value[name] if name else value)[key]
    return {name: item for name, item in value.items() if item or name == "answers"}


def _length(length: LengthFilter, prefix: str, locate: Locate) -> Iterator[Problem]:
    bounds = {f"{side}_{name}": getattr(length, f"{side}_{name}") for name in _BOUNDS for side in ("min", "max")}
    if all(bound is None for bound in bounds.values()):
        message = f"`{prefix}` has no bound: no row would be dropped"
        yield locate(prefix, on="key").problem("C110", message, hint="for instance {max_answer: 1000}")
    for name in _BOUNDS:
        low, high = bounds[f"min_{name}"], bounds[f"max_{name}"]
        if low is not None and high is not None and low > high:
            message = f"min_{name} {low:,} is above max_{name} {high:,}: every row would be dropped"
            yield locate(f"{prefix}.min_{name}").problem("C110", message)


def _judge(judge: JudgeFilter, prefix: str, locate: Locate) -> Iterator[Problem]:
    if not judge.rubric.strip():
        yield locate(f"{prefix}.rubric").problem("C110", "filter judge needs `rubric`: what makes a row good")
    if judge.lowest >= judge.highest:
        message = f"lowest {judge.lowest:g} must be below highest {judge.highest:g}"
        yield locate(f"{prefix}.lowest").problem("C110", message)
    elif not judge.lowest < judge.min_score <= judge.highest:
        what = "no" if judge.min_score <= judge.lowest else "every"
        message = (
            f"min_score {judge.min_score:g} drops {what} row: scores go from {judge.lowest:g} to {judge.highest:g}"
        )
        yield locate(f"{prefix}.min_score").problem("C110", message)
    yield from endpoint_rules(judge.endpoint, f"{prefix}.endpoint", locate, what="filter judge")


def _twice(items: Sequence[str], key: str, locate: Locate) -> Iterator[Problem]:
    if len(set(items)) < len(items):
        yield locate(key).problem("C110", f"`{key}` names something twice", hint="name each once")
