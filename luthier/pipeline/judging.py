"""The judge of a recipe: its server for graders, and its verdicts on two models' answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.recipe.schema import EvaluateSection
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.evaluate.results import TaskResult
    from luthier.scoring.graders.models import Ask

__all__ = ["asking", "judge_facts", "judged", "require_judge"]

_PACE = {"concurrency", "timeout_seconds", "max_retries", "input_price", "output_price", "budget_usd"}


@contextmanager
def asking(section: EvaluateSection) -> Iterator[Ask | None]:
    """How graders ask models meanwhile, and what that cost; None without a judge."""
    if section.judge is None:
        yield None
        return
    from luthier.evaluate.asking import JudgeServer

    with JudgeServer(section.judge, cache_dir=read_env().cache_dir / "answers") as server:
        yield server.ask
        for model, usage in server.usage().items():
            cost = "cost unknown (no prices given)" if usage["cost_usd"] is None else f"${usage['cost_usd']:.4f}"
            note(f"  grading model {model}: {usage['requests']:,} requests, {usage['cached']:,} from the cache, {cost}")


def judge_facts(section: EvaluateSection) -> dict[str, Any]:
    """What scores and verdicts depend on, without pace and price."""
    return {} if section.judge is None else {"judge": section.judge.model_dump(mode="json", exclude=_PACE)}


def require_judge(section: EvaluateSection) -> None:
    """There is a judge with something to compare.

    Raises:
        RecipeError: there is none.
    """
    if section.judge is None or not section.judge.compare:
        message = "--judge needs `evaluate.judge` with `compare` in the file"
        hint = "judge: {base_url: http://localhost:8000/v1, model: NAME, compare: [pairwise], rubric: '...'}"
        raise RecipeError(code="E556", message=message, hint=hint)


def judged(
    section: EvaluateSection, before: Sequence[TaskResult], after: Sequence[TaskResult], *, confidence: float
) -> dict[str, Any]:
    """Verdicts of the recipe's judge; see `evaluate/judge/run.py`."""
    from luthier.endpoint.client import Endpoint
    from luthier.evaluate.asking import judge_settings
    from luthier.evaluate.judge.ask import Judge
    from luthier.evaluate.judge.run import judge_results

    judge = section.judge
    assert judge is not None and judge.model is not None, "checked by the recipe's rules"
    with Endpoint(judge_settings(judge, judge.model), cache_dir=read_env().cache_dir / "answers") as client:
        return judge_results(Judge(judge, client), before, after, confidence=confidence)
