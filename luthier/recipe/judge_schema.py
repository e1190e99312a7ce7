"""`evaluate.judge`: the server that grading models and judges of answers are asked at, and what the judge is asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.online_schema import JudgeSection

__all__ = ["EvaluationJudge"]


class EvaluationJudge(JudgeSection):
    """A judge of the answers of base and tuned model; graders `score_model` and `label_model` ask its server, too."""

    compare: list[Literal["pairwise", "rubric"]] = Field(default_factory=list)
    """`pairwise`: which of the two answers is better, asked in both orders; `rubric`: a score of each answer."""
    rubric: str | None = None
    """What makes an answer good, in words; needed by `compare`."""
    min_score: float = 1.0
    """Lowest score of `rubric`."""
    max_score: float = 10.0
    """Highest score of `rubric`."""
    tasks: list[str] | None = None
    """Names of the tasks whose answers are judged; null: all that generate text."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Judge only the first rows of each task."""
