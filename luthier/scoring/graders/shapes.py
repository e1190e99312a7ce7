"""The JSON of every grader, as in OpenAI's API reference (graders; `openai.types.graders` has the same shapes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from luthier.runtime.errors import Problem, RecipeError
from luthier.scoring.graders.formula import FormulaError, names_in
from luthier.scoring.graders.template import check_template

__all__ = [
    "AnyGrader", "LabelModelGrader", "Message", "MultiGrader", "PythonGrader", "ScoreModelGrader",
    "StringCheckGrader", "TextSimilarityGrader", "parse_grader",
]  # fmt: skip

MAX_SOURCE_BYTES = 256 * 1024
"""Longest source of a `python` grader; OpenAI's own limit."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StringCheckGrader(_Shape):
    """1 when the check holds, else 0."""

    type: Literal["string_check"]
    name: str
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]
    """`like`: the input contains the reference; `ilike`: whatever the case."""


class TextSimilarityGrader(_Shape):
    """0 to 1, by the metric."""

    type: Literal["text_similarity"]
    name: str
    input: str
    reference: str
    evaluation_metric: Literal[
        "cosine", "fuzzy_match", "bleu", "gleu", "meteor",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip


class PythonGrader(_Shape):
    """What `grade(sample, item)` of the source returns."""

    type: Literal["python"]
    name: str
    source: str
    image_tag: str | None = None
    """OpenAI's container image. There is none here, so it must be left out."""


class Part(_Shape):
    """A piece of text in a message."""

    type: Literal["input_text", "output_text"]
    text: str


class Message(_Shape):
    """A message to a grading model."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Part | list[Part]
    type: Literal["message"] | None = None

    def text(self) -> str:
        """All its text."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(part.text for part in parts)


class SamplingParams(_Shape):
    """How a grading model answers."""

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None


class ScoreModelGrader(_Shape):
    """The number that a model gives, within `range`."""

    type: Literal["score_model"]
    name: str
    model: str
    input: list[Message]
    range: tuple[float, float] | None = None
    """Lowest and highest score; [0, 1] if left out."""
    sampling_params: SamplingParams | None = None


class LabelModelGrader(_Shape):
    """1 when the label that a model gives is one of `passing_labels`, else 0."""

    type: Literal["label_model"]
    name: str
    model: str
    input: list[Message]
    labels: list[str]
    passing_labels: list[str]

    @model_validator(mode="after")
    def _subset(self) -> LabelModelGrader:
        if strange := sorted(set(self.passing_labels) - set(self.labels)):
            raise ValueError(f"passing_labels that are no labels: {', '.join(strange)}")
        return self


_Single = StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader


class MultiGrader(_Shape):
    """A formula over the rewards of several graders."""

    type: Literal["multi"]
    name: str
    graders: Annotated[dict[str, Annotated[_Single, Field(discriminator="type")]], Field(min_length=1)]
    calculate_output: str
    """For instance `0.8 * answer + 0.2 * form`; see `formula.py`."""


AnyGrader = _Single | MultiGrader
_ADAPTER: TypeAdapter[AnyGrader] = TypeAdapter(Annotated[AnyGrader, Field(discriminator="type")])
_KINDS = "string_check, text_similarity, python, score_model, label_model, multi"


def parse_grader(value: Any, *, where: str = "grader") -> AnyGrader:
    """A grader from its JSON.

    Args:
        value: Parsed JSON or YAML.
        where: What it is called in messages.

    Raises:
        RecipeError: everything that is wrong with it: shape, template variables, formula, source.
    """
    try:
        grader = _ADAPTER.validate_python(value)
    except ValidationError as error:
        problems = [_problem(where, dict(entry)) for entry in error.errors(include_url=False)]
        raise RecipeError(problems=problems) from error
    faults = list(_faults(grader))
    if faults:
        raise RecipeError(problems=[Problem(code="E552", message=f"{where}: {fault}") for fault in faults])
    return grader


def _problem(where: str, entry: Mapping[str, Any]) -> Problem:
    if entry["type"] in ("union_tag_invalid", "union_tag_not_found"):
        got = entry.get("ctx", {}).get("tag", "none")
        return Problem(code="E552", message=f"{where}: `type` must be one of {_KINDS}, got {str(got)[:60]}")
    path = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden" and entry["loc"][-1] == "pass_threshold":
        message = f"{where}: {path}: a threshold changes no reward (only OpenAI's evals count passes with it)"
        return Problem(code="E552", message=message, hint="remove it")
    hint = "remove it" if entry["type"] == "extra_forbidden" else None
    return Problem(code="E552", message=f"{where}: {path}: {entry['msg']}", hint=hint)


def _faults(grader: AnyGrader) -> list[str]:
    if isinstance(grader, MultiGrader):
        faults = [f"graders.{name}: {fault}" for name, one in grader.graders.items() for fault in _faults(one)]
        return faults + _formula_faults(grader)
    if isinstance(grader, PythonGrader):
        return _source_faults(grader)
    texts = (
        [grader.input, grader.reference]
        if isinstance(grader, (StringCheckGrader, TextSimilarityGrader))
        else [message.text() for message in grader.input]
    )
    faults = [fault for text in texts if (fault := check_template(text)) is not None]
    if isinstance(grader, TextSimilarityGrader) and grader.evaluation_metric == "cosine":
        faults.append("evaluation_metric cosine needs an embedding model, which is not offered; take another metric")
    if isinstance(grader, ScoreModelGrader) and grader.range is not None and grader.range[0] >= grader.range[1]:
        faults.append(f"range: {list(grader.range)} is empty")
    if isinstance(grader, (ScoreModelGrader, LabelModelGrader)) and not grader.input:
        faults.append("input: no message")
    return faults


def _formula_faults(grader: MultiGrader) -> list[str]:
    try:
        used = names_in(grader.calculate_output)
    except FormulaError as error:
        return [f"calculate_output: {error}"]
    unknown = sorted(used - set(grader.graders))
    unused = sorted(set(grader.graders) - used)
    faults = [f"calculate_output: `{name}` is none of the graders" for name in unknown]
    return faults + [f"graders.{name} is not in calculate_output: it would have no effect" for name in unused]


def _source_faults(grader: PythonGrader) -> list[str]:
    import ast

    if grader.image_tag is not None:
        return ["image_tag names a container image of OpenAI's; there is none here: leave it out"]
    if len(grader.source.encode("utf-8")) > MAX_SOURCE_BYTES:
        return [f"source is longer than {MAX_SOURCE_BYTES} bytes"]
    try:
        tree = ast.parse(grader.source)
    except (SyntaxError, ValueError, RecursionError) as error:
        return [f"source is not Python: {error}"]
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [] if "grade" in defined else ["source defines no function `grade(sample, item)`"]
