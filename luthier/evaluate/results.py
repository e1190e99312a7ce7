"""What a scored task leaves behind: the records of `eval/before.json` and `eval/after.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runtime.errors import RunFailed

__all__ = ["TaskResult", "read_results", "results_to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Scores of one model on one task, with every answer."""

    name: str
    version: int
    metric: str
    n: int
    """Rows scored."""
    score: float
    """Mean score of the rows; for `loss` nats per trained token over all rows."""
    low: float
    high: float
    confidence: float
    """Level of the interval [low, high]."""
    seconds: float
    new_tokens: int
    """Generated tokens, stop tokens included; 0 for `loss`."""
    tokens_per_second: float
    """Generated tokens (for `loss`: scored tokens) a second, prompts included in the time."""
    settings: Mapping[str, Any]
    """Everything besides the model that the score depends on."""
    secondary: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    """`ref`, `prompt`, `messages`, `output`, `extracted`, `reference`, `score`, `secondary`, `finish_reason`, ..."""
    higher_is_better: bool = True
    """False for `loss` and for metrics of lm-evaluation-harness that say so."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskResult:
        """The way back; keys of later versions are ignored, and of earlier ones only `loss` was better when lower.

        Raises:
            KeyError: a key is missing.
        """
        direction = {"higher_is_better": value["metric"] != "loss", **value}
        return cls(**{name: direction[name] for name in cls.__slots__})


def results_to_json(results: Sequence[TaskResult], *, model: str) -> dict[str, Any]:
    """The content of a score file.

    Args:
        results: One a task.
        model: `base`, `tuned`, or the name of the model.
    """
    return {"model": model, "tasks": [result.to_json() for result in results]}


def read_results(path: Path) -> list[TaskResult]:
    """Read a score file.

    Raises:
        RunFailed: it is missing or not such a file.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        return [TaskResult.from_json(task) for task in value["tasks"]]
    except FileNotFoundError as error:
        hint = "run the stage that writes it: `luthier eval`, or `luthier run`"
        raise RunFailed(code="E530", message=f"{path} does not exist", hint=hint) from error
    except OSError as error:
        raise RunFailed(code="E530", message=f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is not a file of scores ({type(error).__name__}: {error})"
        raise RunFailed(code="E531", message=message) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
