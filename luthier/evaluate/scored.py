"""From answers to a result: scores of all rows, their mean, its interval. Who answered does not matter here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.graded import grade_rows
from luthier.evaluate.results import TaskResult
from luthier.evaluate.stats import Interval, proportion, ratio
from luthier.evaluate.task import Task, TaskRow
from luthier.scoring.extract import compile_pattern
from luthier.scoring.graders.models import Ask
from luthier.scoring.json_score import FieldCounts
from luthier.scoring.metrics import Score, score_answer

__all__ = ["Answer", "answered", "mean_interval", "mean_result", "means", "question_of", "score_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said."""

    text: str
    finish_reason: str | None
    new_tokens: int


def answered(
    task: Task,
    prompts: Sequence[str],
    answers: Sequence[Answer],
    *,
    settings: Mapping[str, Any],
    seconds: float,
    confidence: float,
    ask: Ask | None = None,
) -> TaskResult:
    """The result of a task whose rows were all answered.

    Args:
        task: What was asked.
        prompts: Text of each prompt, as far as it is known.
        answers: One a row.
        settings: Everything besides the model that the score depends on.
        seconds: Time the answers took.
        confidence: Level of the interval.
        ask: How grading models are asked.
    """
    scores = score_rows(task, [answer.text for answer in answers], ask=ask)
    return mean_result(
        [_row(*parts) for parts in zip(task.rows, prompts, answers, scores, strict=True)],
        name=task.name,
        version=task.version,
        metric=task.metric,
        settings=settings,
        secondary=means(scores),
        seconds=seconds,
        confidence=confidence,
    )


def mean_result(
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    version: int,
    metric: str,
    settings: Mapping[str, Any],
    secondary: Mapping[str, float],
    seconds: float,
    confidence: float,
    higher_is_better: bool = True,
) -> TaskResult:
    """A result whose score is the mean of its rows' `score`; every row has `new_tokens`."""
    values = [float(row["score"]) for row in rows]
    interval = mean_interval(values, confidence=confidence)
    new_tokens = sum(row["new_tokens"] for row in rows)
    return TaskResult(
        name=name,
        version=version,
        metric=metric,
        n=len(values),
        score=sum(values) / len(values),
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        seconds=round(seconds, 3),
        new_tokens=new_tokens,
        tokens_per_second=round(new_tokens / max(seconds, 1e-9), 3),
        settings=settings,
        secondary=secondary,
        rows=list(rows),
        higher_is_better=higher_is_better,
    )


def mean_interval(values: Sequence[float], *, confidence: float) -> Interval:
    """Wilson's interval when all scores are 0 or 1, else a bootstrap over rows."""
    if {*values} <= {0.0, 1.0}:
        return proportion(round(sum(values)), len(values), confidence=confidence)
    return ratio(values, [1.0] * len(values), confidence=confidence)


def score_rows(task: Task, answers: Sequence[str], *, ask: Ask | None = None) -> list[Score]:
    """Main score of every answer, with the task's secondary scores beside it."""
    if task.metric == "grader":
        return grade_rows(task, answers, ask)
    pattern = compile_pattern(task.pattern) if task.pattern else None
    more = [(second, compile_pattern(second.pattern) if second.pattern else None) for second in task.secondary]
    scores = []
    for row, answer in zip(task.rows, answers, strict=True):
        score = score_answer(task.metric, answer, row.reference, pattern=pattern)
        extra = {
            second.name: score_answer(second.metric, answer, row.reference, pattern=compiled, bare_reference=True).value
            for second, compiled in more
        }
        secondary = {**score.secondary, **extra}
        scores.append(Score(value=score.value, extracted=score.extracted, secondary=secondary, fields=score.fields))
    return scores


def means(scores: Sequence[Score]) -> dict[str, float]:
    """Mean of every secondary score (a row without it counts 0); `field_f1` over all fields of all rows."""
    names = list(dict.fromkeys(name for score in scores for name in score.secondary))
    found = {name: sum(score.secondary.get(name, 0.0) for score in scores) / len(scores) for name in names}
    if all(score.fields is not None for score in scores) and "field_f1" in found:
        found["field_f1"] = sum((score.fields for score in scores if score.fields), FieldCounts()).f1
    return found


def question_of(row: TaskRow, prompt: str) -> dict[str, Any]:
    """What was asked, and the right answer."""
    messages = [dict(message) for message in row.messages]
    return {"ref": str(row.ref), "prompt": prompt, "messages": messages, "reference": row.reference}


def _row(row: TaskRow, prompt: str, answer: Answer, score: Score) -> dict[str, Any]:
    return {
        **question_of(row, prompt),
        "output": answer.text,
        "extracted": score.extracted,
        "score": score.value,
        "secondary": dict(score.secondary),
        "finish_reason": answer.finish_reason,
        "new_tokens": answer.new_tokens,
        **({"grader_error": score.fault} if score.fault else {}),
    }
