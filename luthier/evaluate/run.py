"""Score a model on tasks: prompts, greedy answers, scores, intervals, and every setting they depend on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from luthier.evaluate.loss import row_losses
from luthier.evaluate.prompts import ControlTokens, Prompt, Renderer
from luthier.evaluate.results import TaskResult, read_results, results_to_json
from luthier.evaluate.stats import proportion, ratio
from luthier.evaluate.tasks import Task, TaskRow
from luthier.generation.decode import context_length, inner_model
from luthier.generation.generate import Generation, default_batch_size, generate, token_capacity
from luthier.model.stops import stop_ids as find_stop_ids
from luthier.runtime.errors import DataError, LuthierError, Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.scoring.extract import compile_pattern
from luthier.scoring.json_score import FieldCounts
from luthier.scoring.metrics import Score, score_answer

__all__ = ["TaskResult", "read_results", "results_to_json", "run_tasks"]


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    batch_size: int | Literal["auto"] = "auto",
    confidence: float = 0.95,
    template_kwargs: Mapping[str, Any] | None = None,
    stop_ids: Sequence[int] | None = None,
    control_tokens: ControlTokens = "text",
) -> list[TaskResult]:
    """Score a model on tasks, in their order.

    All prompts of all tasks are made before the first is answered, so that a row that cannot be
    asked costs no generation.

    Args:
        model: Causal language model, with or without adapters; its state is the same afterwards.
        tokenizer: With the template that was trained.
        tasks: From `load_task`.
        batch_size: Most rows at once. `auto`: 64 on a CPU; on a GPU 256, or what its free memory holds.
        confidence: Level of the intervals.
        template_kwargs: As `model.chat_template_kwargs`.
        stop_ids: Tokens that end an answer; by default `model.stops.stop_ids`. Give both models of a
            comparison the same.
        control_tokens: As `data.control_tokens`.

    Raises:
        RecipeError: two tasks of one name.
        DataError: rows that cannot be rendered, each with its line.
        OutOfMemory: with the setting to lower.
    """
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(
            code="E518", message=f"two tasks are called {', '.join(twice)}", hint="give each its own name"
        )
    stops = list(stop_ids) if stop_ids is not None else find_stop_ids(tokenizer, inner_model(model))
    renderer = Renderer(
        tokenizer,
        template_kwargs=template_kwargs or {},
        control_tokens=control_tokens,
        room=context_length(model),
    )
    size = default_batch_size(inner_model(model).device.type) if batch_size == "auto" else batch_size
    scorer = _Scorer(model, tokenizer, renderer, stop_ids=stops, batch_size=size, confidence=confidence)
    return scorer.run(tasks)


class _Scorer:
    """What is the same for all tasks of one call."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        renderer: Renderer,
        *,
        stop_ids: list[int],
        batch_size: int,
        confidence: float,
    ) -> None:
        self.model, self.tokenizer, self.renderer = model, tokenizer, renderer
        self.stop_ids, self.batch_size, self.confidence = stop_ids, batch_size, confidence

    def run(self, tasks: Sequence[Task]) -> list[TaskResult]:
        ready: list[Any] = []
        problems: list[Problem] = []
        for task in tasks:
            try:
                ready.append(self.renderer.examples(task) if task.metric == "loss" else self.renderer.prompts(task))
            except LuthierError as error:
                problems += error.problems
        if problems:
            raise DataError(problems=problems)
        score = {True: self._loss, False: self._answers}
        return [score[task.metric == "loss"](task, inputs) for task, inputs in zip(tasks, ready, strict=True)]

    def _answers(self, task: Task, prompts: list[Prompt]) -> TaskResult:
        started = time.monotonic()
        answers = generate(
            self.model,
            self.tokenizer,
            [prompt.ids for prompt in prompts],
            max_new_tokens=task.max_new_tokens,
            stop_ids=self.stop_ids,
            batch_size=self.batch_size,
            max_batch_tokens=token_capacity(self.model),
            label=task.name,
        )
        seconds = time.monotonic() - started
        new_tokens = sum(len(answer.ids) for answer in answers)
        scored = list(zip(task.rows, prompts, answers, score_rows(task, answers), strict=True))
        right = [score.value for _, _, _, score in scored]
        interval = proportion(round(sum(right)), len(right), confidence=self.confidence)
        settings = {"decoding": "greedy", "max_new_tokens": task.max_new_tokens, "stop_ids": sorted(self.stop_ids)}
        return TaskResult(
            name=task.name,
            version=task.version,
            metric=task.metric,
            n=len(right),
            score=sum(right) / len(right),
            low=interval.low,
            high=interval.high,
            confidence=self.confidence,
            seconds=round(seconds, 3),
            new_tokens=new_tokens,
            tokens_per_second=round(new_tokens / max(seconds, 1e-9), 3),
            settings={**settings, **self._settings(task, [prompt.ids for prompt in prompts])},
            secondary=_means([score for _, _, _, score in scored]),
            rows=[_row(*parts) for parts in scored],
        )

    def _loss(self, task: Task, examples: list[Any]) -> TaskResult:
        started = time.monotonic()
        losses = row_losses(self.model, examples, batch_size=self.batch_size, label=task.name)
        seconds = time.monotonic() - started
        sums, weights = [loss.nll for loss in losses], [loss.weight for loss in losses]
        tokens = sum(loss.tokens for loss in losses)
        mean = sum(sums) / sum(weights)
        interval = ratio(sums, weights, confidence=self.confidence)
        rows = [
            {
                **_question(row, self._text(example)),
                "output": None,
                "extracted": None,
                "score": loss.nll / loss.weight,
                "secondary": {"nll": loss.nll, "weight": loss.weight, "tokens": loss.tokens},
                "finish_reason": None,
            }
            for row, example, loss in zip(task.rows, examples, losses, strict=True)
        ]
        return TaskResult(
            name=task.name,
            version=task.version,
            metric="loss",
            n=len(rows),
            score=mean,
            low=interval.low,
            high=interval.high,
            confidence=self.confidence,
            seconds=round(seconds, 3),
            new_tokens=0,
            tokens_per_second=round(tokens / max(seconds, 1e-9), 3),
            settings={"decoding": "none", **self._settings(task, [list(example.ids) for example in examples])},
            secondary={"perplexity": math.exp(min(mean, 700.0)), "tokens": float(tokens)},
            rows=rows,
        )

    def _settings(self, task: Task, ids: list[list[int]]) -> dict[str, Any]:
        inner = inner_model(self.model)
        return {
            "template_hash": self.renderer.template_hash(),
            "template_kwargs": self.renderer.template.kwargs,
            "num_fewshot": task.num_fewshot,
            "fewshot_hash": task.fewshot_hash,
            "data_hash": task.data_hash,
            "inputs_hash": hash_json(ids),
            "pattern": task.pattern,
            "batch_size": self.batch_size,
            "device": inner.device.type,
            "dtype": str(inner.dtype).removeprefix("torch."),
        }

    def _text(self, example: Any) -> str:
        first = next(index for index, weight in enumerate(example.weights) if weight)
        ids = list(example.ids[:first])
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def score_rows(task: Task, answers: Sequence[Generation]) -> list[Score]:
    """Main score of every answer, with the task's secondary scores beside it."""
    pattern = compile_pattern(task.pattern) if task.pattern else None
    more = [(second, compile_pattern(second.pattern) if second.pattern else None) for second in task.secondary]
    scores = []
    for row, answer in zip(task.rows, answers, strict=True):
        score = score_answer(task.metric, answer.text, row.reference, pattern=pattern)
        extra = {
            second.name: score_answer(
                second.metric, answer.text, row.reference, pattern=compiled, bare_reference=True
            ).value
            for second, compiled in more
        }
        secondary = {**score.secondary, **extra}
        scores.append(Score(value=score.value, extracted=score.extracted, secondary=secondary, fields=score.fields))
    return scores


def _means(scores: Sequence[Score]) -> dict[str, float]:
    """Mean of every secondary score (a row without it counts 0); `field_f1` over all fields of all rows."""
    names = list(dict.fromkeys(name for score in scores for name in score.secondary))
    means = {name: sum(score.secondary.get(name, 0.0) for score in scores) / len(scores) for name in names}
    if all(score.fields is not None for score in scores) and "field_f1" in means:
        means["field_f1"] = sum((score.fields for score in scores if score.fields), FieldCounts()).f1
    return means


def _question(row: TaskRow, prompt: str) -> dict[str, Any]:
    messages = [dict(message) for message in row.messages]
    return {"ref": str(row.ref), "prompt": prompt, "messages": messages, "reference": row.reference}


def _row(row: TaskRow, prompt: Prompt, answer: Generation, score: Score) -> dict[str, Any]:
    return {
        **_question(row, prompt.text),
        "output": answer.text,
        "extracted": score.extracted,
        "score": score.value,
        "secondary": dict(score.secondary),
        "finish_reason": answer.finish_reason,
        "new_tokens": len(answer.ids),
    }
