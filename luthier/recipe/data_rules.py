"""Rules between the keys of `data`: URLs of rows, shares of a mixture, streaming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isclose

from luthier.recipe.objective_kind import row_kind
from luthier.recipe.positions import Locate
from luthier.recipe.schema import DataSection, ObjectiveSection
from luthier.recipe.store_paths import store_problem
from luthier.recipe.unused import unused_in_mix
from luthier.runtime.errors import Problem

__all__ = ["data_rules", "needs_all_rows", "store_rules"]

_STREAMED = {
    "train", "validation", "mix", "streaming", "max_length", "overlong", "loss_on", "on_empty", "control_tokens",
    "packing",
}  # fmt: skip
"""Keys of `data` that are applied row by row, or to lengths and hashes alone. Any other one asks for all rows."""


def data_rules(data: DataSection, objective: ObjectiveSection | None, locate: Locate) -> Iterator[Problem]:
    """What does not fit together in `data`."""
    yield from _shares(data, objective, locate)
    if data.streaming is not True:
        return
    for key, why in needs_all_rows(data, None if objective is None else objective.name):
        message = f"`data.streaming` keeps no rows in memory, and `{key}` {why}"
        hint = "streaming: false, or run `luthier data dedup` and the like once and name what it wrote"
        yield locate("data.streaming", on="key").problem("C110", message, hint=hint)


def needs_all_rows(data: DataSection, objective: str | None) -> list[tuple[str, str]]:
    """Keys that ask for all rows in memory, and why; empty: the rows can be streamed."""
    found = [
        (f"data.{name}", "compares or changes all of them at once")
        for name, field in DataSection.model_fields.items()
        if name not in _STREAMED and getattr(data, name) != field.get_default(call_default_factory=True)
        if not (name == "decontaminate" and data.decontaminate is not None and data.decontaminate.action == "off")
    ]
    if data.validation.near_duplicates is not None:
        found.append(("data.validation.near_duplicates", "compares all of them"))
    if objective is not None and row_kind(objective) != "tokens":
        found.append((f"objective {objective}", "keeps a reference for every row"))
    return found


def _shares(data: DataSection, objective: ObjectiveSection | None, locate: Locate) -> Iterator[Problem]:
    shares = [source.share for source in data.train]
    named = [share for share in shares if share is not None]
    if not named:
        if data.mix is not None:
            message = "`data.mix` would have no effect: no source names a `share`"
            yield locate("data.mix", on="key").problem("C111", message, hint="share: 0.5 on each source, or remove it")
        return
    for index, source in enumerate(data.train):
        if source.share is None:
            message = f"`data.train.{index}` names no share, and other sources do"
            hint = f"share: {1 - sum(named):.4g}" if 0 < 1 - sum(named) < 1 else "all sources name a share, or none"
            yield locate(f"data.train.{index}").problem("C110", message, hint=hint)
        elif "weight" in source.model_fields_set and source.weight != 1.0:
            message = f"`data.train.{index}.share` and `weight` exclude each other"
            yield locate(f"data.train.{index}.weight", on="key").problem("C110", message, hint="keep one of them")
    if len(named) == len(shares) and not isclose(sum(named), 1.0, abs_tol=1e-6):
        meant = ", ".join(f"{share / sum(named):.4g}" for share in named)
        message = f"the shares of all sources must add up to 1; these add up to {sum(named):.6g}"
        yield locate("data.train.0.share").problem("C110", message, hint=f"in these proportions: {meant}")
    mix = data.mix
    for key, why in unused_in_mix(mix).items() if mix is not None else ():
        if mix is not None and key in mix.model_fields_set:
            message = f"`data.mix.{key}` would have no effect: {why}"
            yield locate(f"data.mix.{key}", on="key").problem("C111", message, hint="remove it")
    if objective is not None and objective.name == "grpo" and (mix is None or mix.by == "trained_tokens"):
        message = "prompts of online RL have no trained tokens to mix by"
        yield locate("data.mix.by").problem("C110", message, hint="mix: {by: rows} or {by: tokens}")


def store_rules(text: str, key: str, locate: Locate) -> Iterator[Problem]:
    """A URL that is not read, or that would write a credential into the manifest."""
    wrong = store_problem(text)
    if wrong is None:
        return
    message, hint, shown = wrong
    problem = locate(key).problem("C130", f"`{key}`: {message}", hint=hint)
    yield problem if shown else replace(problem, source=None, column=None)
