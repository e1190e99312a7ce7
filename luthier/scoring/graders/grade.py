"""Validate a grader, and run it on one sample: what OpenAI's `graders/validate` and `graders/run` answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.scoring.graders.formula import FormulaError, evaluate
from luthier.scoring.graders.models import Ask, ModelFault, ask_label, ask_score
from luthier.scoring.graders.sandbox import Limits, run_python
from luthier.scoring.graders.shapes import (
    AnyGrader,
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    parse_grader,
)
from luthier.scoring.graders.template import InvalidVariable, fill, sample_of
from luthier.scoring.graders.text import similarity, string_check

__all__ = ["Grade", "models_of", "run_grader", "validate_grader"]

_FLAGS = (
    "formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
    "invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error",
    "model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Grade:
    """What a grader gave."""

    name: str
    type: str
    reward: float = 0.0
    """0 when there is an error."""
    sub_rewards: dict[str, float] = field(default_factory=dict)
    """Of a `multi` grader, by name."""
    errors: dict[str, str] = field(default_factory=dict)
    """Kind of error (OpenAI's names), and what happened."""
    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens by grading model."""
    walls: tuple[str, ...] | None = None
    """Of `python`: what was fenced off."""

    def to_json(self) -> dict[str, Any]:
        """As the API answers."""
        flags: dict[str, Any] = {name: name in self.errors for name in _FLAGS}
        flags["python_grader_runtime_error_details"] = self.errors.get("python_grader_runtime_error")
        flags["python_grader_server_error_type"] = None
        flags["model_grader_server_error_details"] = self.errors.get("model_grader_server_error")
        return {
            "reward": self.reward,
            "metadata": {
                "name": self.name,
                "type": self.type,
                "errors": flags,
                "execution_time": self.seconds,
                "scores": dict(self.sub_rewards),
                "token_usage": sum(self.tokens.values()) or None,
                "sampled_model_name": None,
            },
            "sub_rewards": dict(self.sub_rewards),
            "model_grader_token_usage_per_model": dict(self.tokens),
        }


def validate_grader(value: Any) -> dict[str, Any]:
    """The grader as it will be run, as `graders/validate` answers.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    return {"grader": parse_grader(value).model_dump(exclude_none=True)}


def models_of(grader: AnyGrader) -> list[str]:
    """Names of the grading models it asks."""
    if isinstance(grader, MultiGrader):
        return list(dict.fromkeys(name for one in grader.graders.values() for name in models_of(one)))
    return [grader.model] if isinstance(grader, (ScoreModelGrader, LabelModelGrader)) else []


def run_grader(
    grader: AnyGrader,
    *,
    item: Mapping[str, Any],
    model_sample: str,
    ask: Ask | None = None,
    limits: Limits | None = None,
) -> Grade:
    """Grade one answer. What goes wrong with this answer is in `Grade.errors`; nothing is raised for it.

    Args:
        grader: From `parse_grader`.
        item: The row: `{{ item.x }}`.
        model_sample: The answer: `{{ sample.output_text }}`, and `output_json` when it is JSON.
        ask: How grading models are asked.
        limits: Of `python` graders.

    Raises:
        EnvironmentProblem: a package of a text metric is missing.
        LuthierError: whatever `ask` raises.
    """
    spaces = {"item": item, "sample": sample_of(model_sample)}
    started = time.monotonic()
    grade = Grade(name=grader.name, type=grader.type)
    try:
        if isinstance(grader, MultiGrader):
            _multi(grade, grader, item=item, model_sample=model_sample, ask=ask, limits=limits)
        else:
            _single(grade, grader, spaces, ask, limits)
    except InvalidVariable as error:
        grade.errors["invalid_variable_error"] = str(error)
    except ModelFault as error:
        grade.errors["model_grader_parse_error"] = str(error)
    except FormulaError as error:
        grade.errors["formula_parse_error"] = str(error)
    if grade.errors:
        grade.reward = 0.0
    grade.seconds = time.monotonic() - started
    return grade


def _single(grade: Grade, grader: Any, spaces: Mapping[str, Any], ask: Ask | None, limits: Limits | None) -> None:
    if isinstance(grader, PythonGrader):
        outcome = run_python(grader.source, sample=spaces["sample"], item=spaces["item"], limits=limits)
        grade.walls = outcome.walls
        if outcome.value is None:
            grade.errors["python_grader_runtime_error"] = outcome.error or "no value"
        else:
            grade.reward = outcome.value
    elif isinstance(grader, (ScoreModelGrader, LabelModelGrader)):
        if ask is None:
            grade.errors["model_grader_server_error"] = f"no server is known for the model {grader.model}"
            return
        if isinstance(grader, ScoreModelGrader):
            grade.reward, tokens = ask_score(grader, ask, spaces)
        else:
            label, tokens = ask_label(grader, ask, spaces)
            grade.reward = float(label in grader.passing_labels)
        grade.tokens[grader.model] = tokens
    else:
        text, reference = fill(grader.input, **spaces), fill(grader.reference, **spaces)
        check = string_check if isinstance(grader, StringCheckGrader) else similarity
        grade.reward = check(grader, text, reference)


def _multi(grade: Grade, grader: MultiGrader, **arguments: Any) -> None:
    for name, one in grader.graders.items():
        part = run_grader(one, **arguments)
        grade.sub_rewards[name] = part.reward
        grade.errors |= {kind: f"{name}: {what}" for kind, what in part.errors.items()}
        grade.walls = part.walls if part.walls is not None else grade.walls
        for model, tokens in part.tokens.items():
            grade.tokens[model] = grade.tokens.get(model, 0) + tokens
    if not grade.errors:
        grade.reward = evaluate(grader.calculate_output, grade.sub_rewards)
