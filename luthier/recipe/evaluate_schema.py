"""`evaluate`: tasks, judge, and how both models are compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from luthier.recipe.judge_schema import EvaluationJudge
from luthier.recipe.section import Section

__all__ = ["EvaluateSection", "TaskSpec"]

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(ge=1)]


class TaskSpec(Section):
    """What to ask the model and how to score the answer."""

    # For editors: `name` may be left out beside `lm_eval`.
    model_config = ConfigDict(json_schema_extra={"required": []})

    name: Annotated[str, Field(pattern=r"^(builtin:)?[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name in tables and files; with no `path`, what ships with Luthier: `gsm8k`, `builtin:forgetting`."""
    path: str | None = None
    """Rows, in any format of `data.train`; the last assistant message is the reference."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "segments"] = "auto"
    """As in `data.train`."""
    map: dict[str, str] = Field(default_factory=dict)
    """As in `data.train`."""
    system: str | None = None
    """System message put in front of rows that have none."""
    metric: Literal["exact", "contains", "regex", "number", "json_exact", "loss"] | None = None
    """Main score of a row. `number` compares the last number; `loss` is the held-out loss of the references."""
    pattern: str | None = None
    """Regular expression whose first group is the answer in output and reference; needed by `regex`."""
    limit: PositiveInt | None = None
    """Use only the first rows."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples put before each question as earlier turns; taken from `fewshot_path` (or the task's own)."""
    fewshot_path: str | None = None
    """Rows to take the worked examples from; never the scored ones."""
    max_new_tokens: PositiveInt | None = None
    """Longest answer, in tokens."""
    grader: dict[str, Any] | None = None
    """Score by a grader in place of `metric`, written as OpenAI's API takes it (docs/graders.md)."""
    lm_eval: str | None = None
    """A task or group of lm-evaluation-harness: its name, or the path of a YAML file; takes the place of `path`."""
    include_path: str | None = None
    """Folder of more tasks for lm-evaluation-harness."""
    apply_chat_template: bool | None = None
    """Of `lm_eval`: ask through the chat template of the run; null: when the tokenizer has one."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_harness(cls, value: Any) -> Any:
        """`{lm_eval: gsm8k}` needs no name of its own."""
        named = value.get("lm_eval") if isinstance(value, dict) and "name" not in value else None
        return (
            {**value, "name": named.rpartition("/")[2].rpartition(".y")[0] or named}
            if isinstance(named, str)
            else value
        )


class EvaluateSection(Section):
    """Scoring before and after."""

    tasks: list[TaskSpec] = Field(default_factory=list)
    """Tasks scored with the base and with the tuned model, on the same rows."""
    compare_with_base: bool = True
    """Score the untouched model first."""
    batch_size: PositiveInt | Auto = "auto"
    """Prompts generated at once."""
    judge: EvaluationJudge | None = None
    """Server of grading models, and a judge of the answers of base and tuned model (docs/judge.md)."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Level of the intervals; 1 - confidence is the level of the tests."""
