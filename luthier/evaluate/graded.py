"""Rows scored by a grader: many at once, and what went wrong counted and kept beside the row."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from luthier.evaluate.task import Task, TaskRow
from luthier.runtime.console import progress
from luthier.runtime.device import physical_cores
from luthier.runtime.errors import RunFailed
from luthier.scoring.graders import Grade, run_grader
from luthier.scoring.graders.grade import models_of
from luthier.scoring.graders.models import Ask
from luthier.scoring.graders.shapes import parse_grader
from luthier.scoring.metrics import Score

__all__ = ["grade_rows"]

WAITING = 16
"""Rows at once when a server is asked; its own limits hold besides."""


def grade_rows(task: Task, answers: Sequence[str], ask: Ask | None) -> list[Score]:
    """Score of every answer by the task's grader.

    A row whose grader fails scores 0 and is counted under `grader_error`.

    Raises:
        RunFailed: it failed on every row.
        EnvironmentProblem: a package of a text metric is missing.
        LuthierError: whatever asking a grading model raises.
    """
    grader = parse_grader(dict(task.grader or {}), where=f"grader of task `{task.name}`")
    workers = WAITING if models_of(grader) else physical_cores()

    with ThreadPoolExecutor(workers) as pool, progress(f"grading {task.name}", len(answers)) as bar:

        def one(row: TaskRow, answer: str) -> Grade:
            grade = run_grader(grader, item=item_of(row), model_sample=answer, ask=ask)
            bar.advance(1)
            return grade

        grades = list(pool.map(one, task.rows, answers))
    failed = [grade for grade in grades if grade.errors]
    if len(failed) == len(grades):
        what = next(iter(failed[0].errors.values()))
        message = f"the grader of task `{task.name}` failed on all {len(grades)} rows, for instance: {what}"
        raise RunFailed(code="E554", message=message, hint="try it on one row: `luthier.scoring.graders.run_grader`")
    return [_score(grade, any_failed=bool(failed)) for grade in grades]


def item_of(row: TaskRow) -> dict[str, object]:
    """The `item` namespace: columns of the row, and `reference`, `messages` and `prompt` unless it has such columns."""
    messages = [dict(message) for message in row.messages]
    prompt = str(messages[-1].get("content") or "") if messages else row.conversation.prompt
    return {"reference": row.reference, "messages": messages, "prompt": prompt, **row.item}


def _score(grade: Grade, *, any_failed: bool) -> Score:
    parts = {name: float(value) for name, value in grade.sub_rewards.items()}
    errors = {"grader_error": float(bool(grade.errors))} if any_failed else {}
    fault = "; ".join(f"{kind}: {what}" for kind, what in grade.errors.items()) or None
    return Score(value=grade.reward, extracted=None, secondary={**parts, **errors}, fault=fault)
