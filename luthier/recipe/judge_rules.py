"""Rules over graders and the judge of `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from luthier.recipe.judge_schema import EvaluationJudge
from luthier.recipe.positions import Locate
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["grader_rules", "judge_rules"]


def grader_rules(task: TaskSpec, prefix: str, locate: Locate) -> Iterator[Problem]:
    """The grader of a task is one, and stands alone."""
    from luthier.scoring.graders.shapes import parse_grader

    for key in ("metric", "pattern"):
        if getattr(task, key) is not None:
            message = f"`{prefix}.{key}` beside `grader`: one of them scores the answers"
            yield locate(f"{prefix}.{key}", on="key").problem("C110", message, hint="remove one")
    try:
        parse_grader(task.grader, where="grader")
    except RecipeError as error:
        for problem in error.problems:
            yield locate(f"{prefix}.grader", on="key").problem("E552", problem.message, hint=problem.hint)


def judge_rules(judge: EvaluationJudge | None, tasks: Sequence[TaskSpec], locate: Locate) -> Iterator[Problem]:
    """A judge has a server and something to do; graders that ask models have a judge's server."""
    asking = [task for task in tasks if _asks_a_model(task)]
    prefix = "evaluate.judge"
    if judge is None:
        for task in asking:
            message = f'the grader of task "{task.name}" asks a model, and there is no `evaluate.judge` with its server'
            hint = "evaluate: {judge: {base_url: http://localhost:8000/v1}}"
            yield locate("evaluate", on="key").problem("C110", message, hint=hint)
        return
    if not judge.compare and not asking:
        message = f"`{prefix}` has nothing to do: no `compare`, and no grader asks a model"
        yield locate(prefix, on="key").problem("C111", message, hint="compare: [pairwise]")
    needed = {"base_url": True, "model": bool(judge.compare), "rubric": bool(judge.compare)}
    for key, wanted in needed.items():
        if wanted and not getattr(judge, key):
            yield locate(prefix, on="key").problem("C110", f"`{prefix}` needs `{key}`")
    if judge.base_url and not judge.base_url.startswith(("http://", "https://")):
        yield locate(f"{prefix}.base_url").problem("C103", f'`{prefix}.base_url` is no http(s) URL: "{judge.base_url}"')
    if judge.budget_usd is not None and (judge.input_price is None or judge.output_price is None):
        message = f"`{prefix}.budget_usd` needs the prices it is counted with"
        yield locate(f"{prefix}.budget_usd", on="key").problem("C110", message, hint="input_price and output_price")
    if judge.min_score >= judge.max_score:
        message = f"`{prefix}.min_score` {judge.min_score:g} is not below `max_score` {judge.max_score:g}"
        yield locate(prefix, on="key").problem("C110", message)
    unused = {} if judge.compare else dict.fromkeys(("model", "rubric", "tasks", "limit"), "`compare` asks for nothing")
    if "rubric" not in judge.compare:
        unused |= dict.fromkeys(("min_score", "max_score"), "`compare` has no `rubric`")
    for key, reason in unused.items():
        if key in judge.model_fields_set and getattr(judge, key) is not None:
            message = f"`{prefix}.{key}` would have no effect: {reason}"
            yield locate(f"{prefix}.{key}", on="key").problem("C111", message, hint="remove it")
    known = {task.name for task in tasks}
    for name in judge.tasks or []:
        if name not in known:
            message = f'`{prefix}.tasks`: there is no task "{name}"'
            yield locate(f"{prefix}.tasks").problem("C110", message, hint=f"there are: {', '.join(sorted(known))}")


def _asks_a_model(task: TaskSpec) -> bool:
    from luthier.scoring.graders.grade import models_of
    from luthier.scoring.graders.shapes import parse_grader

    if task.grader is None:
        return False
    try:
        return bool(models_of(parse_grader(task.grader)))
    except RecipeError:
        return False  # told by `grader_rules`
