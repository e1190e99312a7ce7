"""Run tasks of lm-evaluation-harness and turn its samples into results that can be compared as our own are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.harness.library import undisturbed
from luthier.evaluate.harness.load import FEWSHOT_SEED, HarnessTask
from luthier.evaluate.harness.model import EndpointModel, LocalModel
from luthier.evaluate.results import TaskResult
from luthier.evaluate.scored import mean_result
from luthier.runtime.errors import DataError, LuthierError, RecipeError, RunFailed

__all__ = ["run_harness"]

_NO_FILTER = "none"
Sample = Mapping[str, Any]


def run_harness(asked: LocalModel | EndpointModel, task: HarnessTask, *, confidence: float) -> list[TaskResult]:
    """Scores of one task of the recipe: one result for each task of the harness and each of its filters.

    Args:
        asked: The model.
        task: From `load_harness`.
        confidence: Level of the intervals.

    Raises:
        RecipeError, DataError, AccessError: what `asked` refuses.
        RunFailed: the harness failed, or none of a task's metrics is a mean over rows.
    """
    from lm_eval.evaluator import evaluate

    chat = _applies_template(asked, task)
    started = time.monotonic()
    try:
        with undisturbed():
            found = evaluate(
                asked, dict(task.loaded), limit=task.spec.limit, bootstrap_iters=0, log_samples=True,
                system_instruction=task.spec.system, apply_chat_template=chat, fewshot_as_multiturn=chat,
            )  # fmt: skip
    except LuthierError:
        raise
    except Exception as error:
        # Tasks are code of others: whatever they raise is told with the task's name.
        message = f"task `{task.name}`: lm-evaluation-harness failed: {type(error).__name__}: {error}"
        raise RunFailed(code="E547", message=message) from error
    seconds = time.monotonic() - started
    for one in task.loaded["tasks"].values():
        # A second model gets the same worked examples, and none of the first one's answers.
        one.set_fewshot_seed(seed=FEWSHOT_SEED)
        one._instances = None
    results = [
        _result(asked, task, name, kind, samples, found, chat=chat, seconds=seconds, confidence=confidence)
        for name, all_samples in found["samples"].items()
        for kind, samples in _by_filter(all_samples).items()
    ]
    return [_named(result, task) for result in results]


def _applies_template(asked: LocalModel | EndpointModel, task: HarnessTask) -> bool:
    wanted = task.spec.apply_chat_template
    if wanted is False and isinstance(asked, EndpointModel):
        message = f"task `{task.name}`: `apply_chat_template: false`, but an endpoint is asked by messages"
        raise RecipeError(code="E545", message=message, hint="leave it out")
    if wanted and not asked.has_template():
        message = f"task `{task.name}`: `apply_chat_template: true`, but the tokenizer has no chat template"
        raise DataError(code="E545", message=message, hint="`model.chat_template`, or apply_chat_template: false")
    return asked.has_template() if wanted is None else wanted


def _by_filter(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample["filter"], []).append(sample)
    return {kind: sorted(rows, key=lambda row: row["doc_id"]) for kind, rows in found.items()}


def _result(
    asked: LocalModel | EndpointModel,
    task: HarnessTask,
    name: str,
    kind: str,
    samples: list[Sample],
    found: Mapping[str, Any],
    *,
    chat: bool,
    seconds: float,
    confidence: float,
) -> TaskResult:
    aggregate = found["results"][name]
    metric, values = _main(task, name, kind, samples, aggregate)
    rows = [_row(asked, name, sample, metric, value) for sample, value in zip(samples, values, strict=True)]
    config = task.loaded["tasks"][name].config
    settings = {
        "decoding": "greedy" if config.output_type == "generate_until" else "none",
        "max_new_tokens": asked.max_new_tokens,
        "num_fewshot": config.num_fewshot,
        "fewshot_hash": None,
        "data_hash": task.data_hash,
        "pattern": None,
        "grader": None,
        "harness": f"lm-eval {task.version}, {name}, {kind}, {'chat template' if chat else 'plain text'}",
        **asked.settings(),
    }
    return mean_result(
        rows,
        name=name if kind == _NO_FILTER else f"{name}.{kind}",
        version=int(_version(config)),
        metric=metric,
        settings=settings,
        secondary=_secondary(metric, kind, aggregate),
        seconds=seconds,
        confidence=confidence,
        higher_is_better=bool((found.get("higher_is_better") or {}).get(name, {}).get(metric, True)),
    )


def _main(
    task: HarnessTask, name: str, kind: str, samples: list[Sample], aggregate: Mapping[str, Any]
) -> tuple[str, list[float]]:
    """The first metric whose aggregate is the mean over rows: only such a one can be tested row by row."""
    for metric in samples[0]["metrics"]:
        values = [sample.get(metric) for sample in samples]
        told = aggregate.get(f"{metric},{kind}")
        if not all(isinstance(value, (int, float)) or hasattr(value, "item") for value in values):
            continue
        numbers = [float(value) for value in values if value is not None]
        if isinstance(told, (int, float)) and math.isclose(sum(numbers) / len(numbers), told, abs_tol=1e-9):
            return metric, numbers
    metrics = ", ".join(samples[0]["metrics"])
    message = f"task `{task.name}`: no metric of `{name}` ({metrics}) is a mean over its rows"
    raise RunFailed(code="E547", message=message, hint="a paired test needs a score of each row: choose another task")


def _secondary(metric: str, kind: str, aggregate: Mapping[str, Any]) -> dict[str, float]:
    """The harness' own figures of its other metrics."""
    found = {}
    for key, value in aggregate.items():
        other, _, where = key.partition(",")
        if where == kind and other != metric and not other.endswith("_stderr") and isinstance(value, (int, float)):
            found[other] = float(value)
    return found


def _row(asked: Any, name: str, sample: Sample, metric: str, value: float) -> dict[str, Any]:
    prompt = sample["arguments"][0][0]
    reason, tokens, raw = asked.said.get(prompt, (None, 0, None))
    extracted = sample["filtered_resps"][0]
    row = {
        "ref": f"lm_eval:{name}:{sample['doc_id'] + 1}",
        "prompt": prompt,
        "messages": [],
        "reference": _text(sample["target"]),
        "output": raw,
        "extracted": _text(extracted) if raw is not None else None,
        "score": value,
        "secondary": {
            key: float(sample[key])
            for key in sample["metrics"]
            if key != metric and isinstance(sample[key], (int, float))
        },
        "finish_reason": reason,
        "new_tokens": tokens,
    }
    if raw is None:
        row["output"] = " | ".join(
            f"{arguments[1]!r}: {response[0][0]:.3f}"
            for arguments, response in zip(sample["arguments"], sample["resps"], strict=True)
        )
        row["log_likelihoods"] = [float(response[0][0]) for response in sample["resps"]]
    return row


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _version(config: Any) -> float:
    version = (config.metadata or {}).get("version", 0)
    return float(version) if isinstance(version, (int, float)) else 0.0


def _named(result: TaskResult, task: HarnessTask) -> TaskResult:
    """Results of one task are called after the recipe's name for it; those of a group keep their own below it."""
    from dataclasses import replace

    only = len(task.loaded["tasks"]) == 1
    own = next(iter(task.loaded["tasks"])) if only else None
    name = task.name + result.name.removeprefix(own) if own is not None else f"{task.name}.{result.name}"
    return replace(result, name=name)
