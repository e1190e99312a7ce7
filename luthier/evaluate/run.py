"""Score a model on tasks: prompts, greedy answers, scores, intervals, and every setting they depend on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from luthier.evaluate.loss import RowLoss, row_losses
from luthier.evaluate.prompts import ControlTokens, Prompt, Renderer
from luthier.evaluate.results import TaskResult, read_results, results_to_json
from luthier.evaluate.scored import Answer, answered, question_of
from luthier.evaluate.stats import ratio
from luthier.evaluate.task import Task
from luthier.generation.decode import context_length, inner_model
from luthier.generation.generate import Generation, default_batch_size, generate, token_capacity
from luthier.model.stops import stop_ids as find_stop_ids
from luthier.runtime.errors import DataError, LuthierError, Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.runtime.spread import Spread
from luthier.scoring.graders.models import Ask

if TYPE_CHECKING:
    from luthier.evaluate.harness.load import HarnessTask

__all__ = ["TaskResult", "read_results", "results_to_json", "run_tasks"]


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task | HarnessTask],
    *,
    batch_size: int | Literal["auto"] = "auto",
    confidence: float = 0.95,
    template_kwargs: Mapping[str, Any] | None = None,
    stop_ids: Sequence[int] | None = None,
    control_tokens: ControlTokens = "text",
    ask: Ask | None = None,
    spread: Spread | None = None,
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
        ask: How graders ask models; see `asking.JudgeServer`.
        spread: The processes that share the rows. Process 0 scores and returns the results, the others return none.

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
    scorer = _Scorer(model, tokenizer, renderer, stop_ids=stops, batch_size=size, confidence=confidence, ask=ask)
    scorer.spread = spread or Spread()
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
        ask: Ask | None,
    ) -> None:
        self.ask, self.spread = ask, Spread()
        self.model, self.tokenizer, self.renderer = model, tokenizer, renderer
        self.stop_ids, self.batch_size, self.confidence = stop_ids, batch_size, confidence

    def run(self, tasks: Sequence[Task | HarnessTask]) -> list[TaskResult]:
        ready: list[Any] = []
        problems: list[Problem] = []
        for task in tasks:
            try:
                ready.append(self._inputs(task))
            except LuthierError as error:
                problems += error.problems
        if problems:
            raise DataError(problems=problems)
        results: list[TaskResult] = []
        for task, inputs in zip(tasks, ready, strict=True):
            if isinstance(task, Task):
                results += (self._loss if task.metric == "loss" else self._answers)(task, inputs)
            else:
                results += self._harness(task)
        return results

    def _inputs(self, task: Task | HarnessTask) -> Any:
        """Prompts or whole rows of a task of our own; the harness makes its own."""
        if not isinstance(task, Task):
            return None
        return self.renderer.examples(task) if task.metric == "loss" else self.renderer.prompts(task)

    def _harness(self, task: HarnessTask) -> list[TaskResult]:
        from luthier.evaluate.harness.shared import Computing

        computing = Computing(
            self.model, self.tokenizer, stop_ids=self.stop_ids, batch_size=self.batch_size, label=task.name,
            spread=self.spread,
        )  # fmt: skip
        if not self.spread.is_main:
            computing.help()
            return []
        from luthier.evaluate.harness.model import LocalModel
        from luthier.evaluate.harness.run import run_harness

        asked = LocalModel(computing, self.renderer.template, room=self.renderer.room)
        results = run_harness(asked, task, confidence=self.confidence)
        computing.done()
        return results

    def _answers(self, task: Task, prompts: list[Prompt]) -> list[TaskResult]:
        started = time.monotonic()

        def answer(ids: Sequence[Sequence[int]]) -> list[Generation]:
            return generate(
                self.model, self.tokenizer, ids, max_new_tokens=task.max_new_tokens, stop_ids=self.stop_ids,
                batch_size=self.batch_size, max_batch_tokens=token_capacity(self.model), label=task.name,
            )  # fmt: skip

        ids = [prompt.ids for prompt in prompts]
        answers = self.spread.map(f"answers to {task.name}", ids, answer, digest=hash_json(ids))
        if not self.spread.is_main:
            return []
        seconds = time.monotonic() - started
        said = [Answer(text=one.text, finish_reason=one.finish_reason, new_tokens=len(one.ids)) for one in answers]
        settings = {"decoding": "greedy", "max_new_tokens": task.max_new_tokens, "stop_ids": sorted(self.stop_ids)}
        result = answered(
            task, [prompt.text for prompt in prompts], said,
            settings={**settings, **self._settings(task, ids)},
            seconds=seconds, confidence=self.confidence, ask=self.ask,
        )  # fmt: skip
        return [result]

    def _loss(self, task: Task, examples: list[Any]) -> list[TaskResult]:
        started = time.monotonic()

        def measure(part: Sequence[Any]) -> list[RowLoss]:
            return list(row_losses(self.model, part, batch_size=self.batch_size, label=task.name))

        ids = [list(example.ids) for example in examples]
        losses = self.spread.map(f"losses of {task.name}", examples, measure, digest=hash_json(ids))
        if not self.spread.is_main:
            return []
        seconds = time.monotonic() - started
        sums, weights = [loss.nll for loss in losses], [loss.weight for loss in losses]
        tokens = sum(loss.tokens for loss in losses)
        mean = sum(sums) / sum(weights)
        interval = ratio(sums, weights, confidence=self.confidence)
        rows = [
            {
                **question_of(row, self._text(example)),
                "output": None,
                "extracted": None,
                "score": loss.nll / loss.weight,
                "secondary": {"nll": loss.nll, "weight": loss.weight, "tokens": loss.tokens},
                "finish_reason": None,
            }
            for row, example, loss in zip(task.rows, examples, losses, strict=True)
        ]
        result = TaskResult(
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
            settings={"decoding": "none", **self._settings(task, ids)},
            secondary={"perplexity": math.exp(min(mean, 700.0)), "tokens": float(tokens)},
            rows=rows,
            higher_is_better=False,
        )
        return [result]

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
            "grader": task.grader,
            "harness": None,
            "batch_size": self.batch_size,
            "device": inner.device.type,
            "dtype": str(inner.dtype).removeprefix("torch."),
        }

    def _text(self, example: Any) -> str:
        first = next(index for index, weight in enumerate(example.weights) if weight)
        ids = list(example.ids[:first])
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
