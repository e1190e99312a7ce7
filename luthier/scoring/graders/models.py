"""`score_model` and `label_model`: another model reads the filled messages and answers with a number or a label.

The model is asked for one JSON object, `{"reason": ..., "result": ...}`; an answer that is none, or out of bounds, is
asked for once more with what was wrong, and then is an error. No failure becomes a number. How a model is reached is
the caller's: `Ask` takes its name, messages and sampling parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.scoring.answer_json import answer_json
from luthier.scoring.graders.shapes import LabelModelGrader, ScoreModelGrader
from luthier.scoring.graders.template import fill

__all__ = ["Ask", "Asked", "ModelFault", "ask_label", "ask_score"]

_FORM = 'Answer with one JSON object and nothing else: {{"reason": "at most one sentence", "result": {result}}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An answer of a grading model."""

    text: str
    tokens: int
    """Tokens of prompt and answer, as far as reported."""


Ask = Callable[[str, list[dict[str, Any]], Mapping[str, Any]], Asked]
"""(model, messages, sampling parameters) -> answer."""


class ModelFault(Exception):
    """The model gave no usable answer."""


def ask_score(grader: ScoreModelGrader, ask: Ask, spaces: Mapping[str, Any]) -> tuple[float, int]:
    """(score, tokens used).

    Raises:
        ModelFault: no number within the range after the second question.
        InvalidVariable: a template names what is not there.
    """
    low, high = grader.range or (0.0, 1.0)

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelFault("`result` is no number")
        if not low <= value <= high:
            raise ModelFault(f"`result` {value:g} is not within {low:g} and {high:g}")
        return float(value)

    sampling = grader.sampling_params.model_dump(exclude_none=True) if grader.sampling_params else {}
    form = _FORM.format(result=f"NUMBER from {low:g} to {high:g}")
    return _ask(grader, ask, spaces, form, read, sampling)


def ask_label(grader: LabelModelGrader, ask: Ask, spaces: Mapping[str, Any]) -> tuple[str, int]:
    """(label, tokens used); raises as `ask_score`."""

    def read(value: Any) -> str:
        if value not in grader.labels:
            raise ModelFault(f"`result` {value!r:.60} is none of the labels")
        return str(value)

    form = _FORM.format(result="one of " + ", ".join(json.dumps(label) for label in grader.labels))
    return _ask(grader, ask, spaces, form, read, {})


def _ask(
    grader: ScoreModelGrader | LabelModelGrader,
    ask: Ask,
    spaces: Mapping[str, Any],
    form: str,
    read: Callable[[Any], Any],
    sampling: Mapping[str, Any],
) -> tuple[Any, int]:
    messages: list[dict[str, Any]] = [
        {"role": "system" if message.role == "developer" else message.role, "content": fill(message.text(), **spaces)}
        for message in grader.input
    ]
    # Last, so that nothing in the graded text stands behind it.
    messages.append({"role": "user", "content": form})
    tokens = 0
    fault = ""
    for _ in range(2):
        said = ask(grader.model, messages, sampling)
        tokens += said.tokens
        try:
            return read(_result(said.text)), tokens
        except ModelFault as error:
            fault = str(error)
        again = f"That was no usable answer: {fault}. {form}"
        messages = [*messages, {"role": "assistant", "content": said.text}, {"role": "user", "content": again}]
    raise ModelFault(f"{grader.model} gave no usable answer: {fault}")


def _result(text: str) -> Any:
    """`result` of the JSON object that the whole text is."""
    try:
        value = answer_json(text)
    except ValueError:
        raise ModelFault("it is no JSON object") from None
    if not isinstance(value, dict) or "result" not in value:
        raise ModelFault("it is no JSON object with `result`")
    return value["result"]
