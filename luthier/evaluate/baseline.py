"""Before any tuning: what prompting alone reaches, and what that says. Rules of the advice, each by its number:

1  some examples or another system message are better than the plain prompt (Holm over all pairs): prompt first
2  none is: nothing to gain by prompting among what was tried
3  the best score is 0.9 or more: little room, which a tune can hardly be shown to fill
4  another model is better than the first, each with its best prompt: compare prices before tuning
5  fewer than half of the plain answers have the right form (`answered`, `valid_json`): form first, by examples
6  fewer rows than a gain of 5 points needs: even if all changed rows change for the better, p < level needs
   k = ceil(log2(2 / level)) of them (exact McNemar test), so a gain below k / n cannot be shown
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.results import TaskResult
from luthier.recipe.builtin import FORGETTING
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import RecipeError

__all__ = ["Advice", "Variant", "advise", "specs_of", "variants"]

NEAR_THE_TOP = 0.9
POOR_FORM = 0.5
WORTH_SHOWING = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to prompt."""

    name: str
    num_fewshot: int
    system: str | None
    """In place of the task's own system message; None: that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One sentence, and the rule it follows from."""

    rule: int
    task: str
    text: str


def variants(shots: Sequence[int], systems: Sequence[str]) -> list[Variant]:
    """Every number of examples with every system message; the plain prompt (no examples, own message) comes first.

    Raises:
        RecipeError: a number of examples or a message twice.
    """
    if len(set(shots)) < len(shots) or len(set(systems)) < len(systems):
        raise RecipeError(code="E557", message="--shots and --system must not name the same thing twice")
    numbers = sorted({0, *shots})
    found = []
    for place, system in enumerate([None, *systems]):
        for number in numbers:
            name = f"{number}-shot" + (f", system {place}" if place else "")
            found.append(Variant(name=name, num_fewshot=number, system=system))
    return found


def specs_of(specs: Sequence[TaskSpec], variant: Variant, *, shots_from: str | None) -> list[TaskSpec]:
    """The tasks prompted in another way.

    Args:
        specs: Tasks of the recipe. `loss` and `builtin:forgetting` are left out: the one has no prompt to vary, the
            other measures what a tune costs and takes no examples.
        variant: How to prompt.
        shots_from: File with worked examples for tasks that name none.

    Raises:
        RecipeError: no task is left.
    """
    from luthier.evaluate.library import library_names

    found = []
    for spec in specs:
        if spec.metric == "loss" or spec.name == FORGETTING:
            continue
        changes: dict[str, Any] = {"num_fewshot": variant.num_fewshot, "fewshot_path": None}
        own_examples = spec.lm_eval is not None or (spec.name in library_names() and spec.fewshot_path is None)
        if variant.num_fewshot and not own_examples:
            changes["fewshot_path"] = spec.fewshot_path or shots_from
        if variant.system is not None:
            changes["system"] = variant.system
        found.append(spec.model_copy(update=changes))
    if not found:
        raise RecipeError(code="E557", message="--baseline needs a task that generates text; the recipe has none")
    return found


def advise(
    scores: Mapping[str, Mapping[str, Sequence[TaskResult]]], comparison: Mapping[str, Any], *, confidence: float
) -> list[Advice]:
    """What the table says.

    Args:
        scores: Results by model and variant; the plain prompt is the first variant of each.
        comparison: From `versus.compare_many` over all of them, named `MODEL, VARIANT`.
        confidence: Level of the words.
    """
    advice = []
    better = _better(comparison)
    first_model = next(iter(scores))
    plain = next(iter(scores[first_model].values()))
    for index, task in enumerate(plain):
        best: dict[str, tuple[str, TaskResult]] = {}
        for model, by_variant in scores.items():
            ranked = [(name, results[index]) for name, results in by_variant.items()]
            best[model] = max(ranked, key=_rank)
            advice.append(_prompting(model, ranked, best[model], better))
        advice += _others(task.name, best, better)
        advice += _room(task, best)
        advice += _form(task, first_model)
        advice += _rows(task, confidence)
    return advice


def _better(comparison: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """(task, one, other) wherever the other is better."""
    found = set()
    for pair in comparison["pairs"]:
        if pair["verdict"] == "better":
            found.add((pair["name"], pair["first"], pair["second"]))
        elif pair["verdict"] == "worse":
            found.add((pair["name"], pair["second"], pair["first"]))
    return found


def _prompting(
    model: str,
    ranked: Sequence[tuple[str, TaskResult]],
    best: tuple[str, TaskResult],
    better: set[tuple[str, str, str]],
) -> Advice:
    name, plain = ranked[0]
    task = plain.name
    winners = [one for one in ranked[1:] if (task, f"{model}, {name}", f"{model}, {one[0]}") in better]
    if winners:
        variant, top = max(winners, key=_rank)
        text = (
            f"{model}: {variant} reaches {_score(top)} against {_score(plain)} of the plain prompt. "
            f"Try prompting first; a tune has to beat {top.score:.3f}"
        )
        return Advice(rule=1, task=task, text=text)
    tried = ", ".join(variant for variant, _ in ranked[1:]) or "nothing else"
    text = f"{model}: no evidence that {tried} is better than the plain prompt ({_score(plain)}); best: {best[0]}"
    return Advice(rule=2, task=task, text=text)


def _others(task: str, best: Mapping[str, tuple[str, TaskResult]], better: set[tuple[str, str, str]]) -> list[Advice]:
    first = next(iter(best))
    mine = f"{first}, {best[first][0]}"
    found = []
    for model, (variant, result) in list(best.items())[1:]:
        if (task, mine, f"{model}, {variant}") in better:
            text = (
                f"{model} with {variant} reaches {_score(result)}, {first} with {best[first][0]} "
                f"{_score(best[first][1])}. Compare their prices before tuning"
            )
            found.append(Advice(rule=4, task=task, text=text))
    return found


def _room(task: TaskResult, best: Mapping[str, tuple[str, TaskResult]]) -> list[Advice]:
    model, (variant, result) = max(best.items(), key=lambda pair: _rank(pair[1]))
    if not task.higher_is_better or result.score < NEAR_THE_TOP:
        return []
    text = f"{model} with {variant} reaches {_score(result)} already: little room for a tune, or the rows are too easy"
    return [Advice(rule=3, task=task.name, text=text)]


def _form(task: TaskResult, model: str) -> list[Advice]:
    shown = {name: task.secondary[name] for name in ("answered", "valid_json") if name in task.secondary}
    return [
        Advice(
            rule=5,
            task=task.name,
            text=f"{model}: {name} is {value:.3f} with the plain prompt. Most answers have the wrong form; "
            "examples or a tune mend that before anything else, so judge content after it",
        )
        for name, value in shown.items()
        if value < POOR_FORM
    ]


def _rows(task: TaskResult, confidence: float) -> list[Advice]:
    fewest = math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)
    if fewest / task.n <= WORTH_SHOWING:
        return []
    text = f"{task.n} rows can show a gain of {fewest / task.n:.3f} at best; {math.ceil(fewest / WORTH_SHOWING)} rows "
    return [Advice(rule=6, task=task.name, text=text + f"are needed for {WORTH_SHOWING:.2f}")]


def _rank(pair: tuple[str, TaskResult]) -> float:
    """The higher the better, whichever way the metric counts."""
    result = pair[1]
    return result.score if result.higher_is_better else -result.score


def _score(result: TaskResult) -> str:
    return f"{result.score:.3f} [{result.low:.3f}, {result.high:.3f}]"
