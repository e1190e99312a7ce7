"""Judge the answers in two score files; what comes of it is `eval/judge.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.compare import compare_results
from luthier.evaluate.judge.ask import Judge
from luthier.evaluate.judge.pairwise import judge_pairs, summarise_pairs
from luthier.evaluate.judge.rubric import judge_scores, summarise_scores
from luthier.evaluate.results import TaskResult
from luthier.runtime.errors import RecipeError
from luthier.runtime.hashing import hash_json

__all__ = ["judge_lines", "judge_results"]


def judge_results(
    judge: Judge, before: Sequence[TaskResult], after: Sequence[TaskResult], *, confidence: float
) -> dict[str, Any]:
    """Verdicts of a judge on two models, task by task.

    Args:
        judge: Whom to ask, and what.
        before: Results of the first model.
        after: Results of the second, on the same rows.
        confidence: Level of the intervals and tests.

    Raises:
        RecipeError: no task has answers to judge.
        RunFailed: the results cannot be compared, or the judge gave too few usable verdicts.
        LuthierError: the judge's server cannot be used.
    """
    compare_results(before, after, confidence=confidence)  # the same rows and settings, or an error
    tasks = []
    judged: set[str] = set()
    for old, new in zip(before, after, strict=True):
        if not _wanted(judge, old):
            continue
        # Filters of lm-evaluation-harness give several results of the same answers: the first is enough.
        answers = hash_json([[row["ref"], row["output"]] for one in (old, new) for row in one.rows])
        if old.settings.get("harness") and answers in judged:
            continue
        judged.add(answers)
        rows = [one.rows[: judge.section.limit] for one in (old, new)]
        tasks.append(_task(judge, old.name, *rows, confidence=confidence))
    if not tasks:
        message = "no task has answers that a judge could read"
        raise RecipeError(code="E556", message=message, hint="add a task that generates text, or mend judge.tasks")
    value = {
        "judge": judge.section.model,
        "base_url": judge.section.base_url,
        "confidence": confidence,
        "tasks": tasks,
        "usage": judge.client.usage().to_json(),
    }
    return {**value, "said": judge_lines(value)}


def _wanted(judge: Judge, result: TaskResult) -> bool:
    names = judge.section.tasks
    generated = all(isinstance(row["output"], str) and "log_likelihoods" not in row for row in result.rows)
    return generated and (names is None or result.name in names or result.name.rpartition(".")[0] in names)


def _task(
    judge: Judge, name: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], *, confidence: float
) -> dict[str, Any]:
    value: dict[str, Any] = {"name": name}
    if "pairwise" in judge.section.compare:
        records = judge_pairs(judge, old, new, label=name)
        value["pairwise"] = {**summarise_pairs(records, confidence=confidence), "rows": records}
    if "rubric" in judge.section.compare:
        scores = judge_scores(judge, old, new, label=name)
        value["rubric"] = {**summarise_scores(scores, confidence=confidence), "rows": scores}
    return value


def judge_lines(value: Mapping[str, Any]) -> list[str]:
    """The verdicts in words, one line each; then what the judge is worth, and its cost."""
    lines = []
    for task in value["tasks"]:
        lines += _pair_lines(task["name"], task.get("pairwise")) + _rubric_lines(task["name"], task.get("rubric"))
    usage = value["usage"]
    cost = "cost unknown (no prices given)" if usage["cost_usd"] is None else f"${usage['cost_usd']:.4f}"
    lines.append(f"judge {value['judge']}: {usage['requests']:,} requests, {usage['cached']:,} from the cache, {cost}")
    return lines


def _pair_lines(name: str, pairs: Mapping[str, Any] | None) -> list[str]:
    if pairs is None:
        return []
    ties = pairs["tie"] + pairs["split"] + pairs["equal"]
    lines = [
        f"{name}, judged in pairs: {pairs['win']} won, {pairs['loss']} lost, {ties} tied "
        f"({pairs['equal']} equal texts, {pairs['split']} by order); "
        f"win rate {pairs['win_rate']:.1%} [{pairs['low']:.1%}, {pairs['high']:.1%}], "
        f"p = {pairs['p_value']:.2g}: {pairs['verdict']}"
    ]
    if pairs["unjudged"]:
        lines.append(f"{name}: {pairs['unjudged']} rows without a usable verdict, left out")
    agreement, bias = pairs["agreement"], pairs["position_bias"]
    if agreement is not None:
        lines.append(
            f"{name}: both orders agree on {agreement['share']:.1%} [{agreement['low']:.1%}, {agreement['high']:.1%}]"
        )
    if bias is not None:
        word = "position bias" if bias["detected"] else "no evidence of position bias"
        lines.append(
            f"{name}: the first place won {bias['share_first']:.1%} [{bias['low']:.1%}, {bias['high']:.1%}] of "
            f"{bias['decided']} answers, p = {bias['p_value']:.2g}: {word}"
        )
    return lines


def _rubric_lines(name: str, rubric: Mapping[str, Any] | None) -> list[str]:
    if rubric is None:
        return []
    left_out = f"; {rubric['unjudged']} rows without a usable score left out" if rubric["unjudged"] else ""
    return [
        f"{name}, scored by rubric: {rubric['before']:.2f} -> {rubric['after']:.2f}, difference {rubric['delta']:+.2f} "
        f"[{rubric['low']:+.2f}, {rubric['high']:+.2f}], p = {rubric['p_value']:.2g}: {rubric['verdict']}{left_out}"
    ]
