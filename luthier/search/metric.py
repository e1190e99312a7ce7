"""What a sweep compares: the held-out loss of the training, or the score of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.recipe.builtin import FORGETTING
from luthier.recipe.nearest import near
from luthier.recipe.schema import Recipe, TaskSpec
from luthier.runtime.errors import RecipeError, RunFailed

__all__ = ["Metric", "read_metric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How trials are ranked."""

    name: str
    """`eval_loss`, or `task:NAME`."""
    task: str | None
    minimise: bool

    @property
    def stages(self) -> tuple[str, ...]:
        """What a trial must run."""
        return ("data", "train", "evaluate", "report") if self.task else ("data", "train", "report")

    def value(self, stages: Mapping[str, Mapping[str, Any]]) -> float:
        """Of a finished run, for the weights in `final/`.

        Raises:
            RunFailed: the run has no such number.
        """
        if self.task is not None:
            scores = {task["name"]: task["score"] for task in stages["evaluate"]["tasks"]}
            return float(scores[self.task])
        train = stages["train"]
        best = train["weights_from_step"] == train["best_step"]
        found = train["best_eval_loss"] if best else train["eval_loss"]
        if found is None:
            raise RunFailed(code="T481", message="the training left no held-out loss to rank this trial by")
        return float(found)

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is strictly better."""
        return one < other if self.minimise else one > other


def read_metric(name: str, recipes: Sequence[Recipe]) -> Metric:
    """The metric of that name, if every recipe has it.

    Raises:
        RecipeError: unknown, or a recipe has no held-out rows or no such task.
    """
    if name == "eval_loss":
        for recipe in recipes:
            if recipe.objective.name == "grpo":
                raise RecipeError(
                    code="C164", message="`--metric eval_loss` is not measured by online RL",
                    hint="rank by a task: --metric task:NAME",
                )  # fmt: skip
            validation = recipe.data.validation
            if validation.path is None and not validation.fraction:
                raise RecipeError(
                    code="C164", message="`--metric eval_loss` needs held-out rows, and the recipe has none",
                    hint="add data.validation.fraction=0.1, or rank by a task: --metric task:NAME",
                )  # fmt: skip
        return Metric(name=name, task=None, minimise=True)
    kind, _, task = name.partition(":")
    if kind != "task" or not task:
        raise RecipeError(code="C164", message=f'"{name}" is no metric; there are eval_loss and task:NAME')
    metrics = set()
    for recipe in recipes:
        tasks = {spec.name: spec.metric for spec in recipe.evaluate.tasks}
        if task not in tasks:
            known = ", ".join(tasks) or "none"
            close = near(task, list(tasks))
            raise RecipeError(
                code="C164", message=f'the recipe has no task "{task}" (tasks: {known})',
                hint=f"did you mean task:{close[0]}?" if close else "add it to `evaluate.tasks`",
            )  # fmt: skip
        if any(_several(spec) for spec in recipe.evaluate.tasks if spec.name == task):
            raise RecipeError(
                code="C164", message=f"task {task} may give several scores (lm-evaluation-harness, {FORGETTING})",
                hint="rank by eval_loss, or by a task of our own",
            )  # fmt: skip
        metrics.add(tasks[task])
    if len(metrics) > 1:
        raise RecipeError(code="C164", message=f"the metric of task {task} differs between trials: nothing to rank by")
    return Metric(name=name, task=task, minimise=metrics == {"loss"})


def _several(spec: TaskSpec) -> bool:
    return spec.lm_eval is not None or spec.name == FORGETTING
