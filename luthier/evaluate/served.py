"""Score a model behind an OpenAI-compatible server: the same rows and scores, but the server renders and stops.

What a server does with its messages (template, stop tokens, tokenizer) is not known here, so it is part of the model
that is compared, not of the setting. A reply is asked for at temperature 0, which servers take for greedy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest, completion_tokens
from luthier.evaluate.results import TaskResult
from luthier.evaluate.scored import Answer, answered
from luthier.evaluate.task import Task
from luthier.runtime.console import progress
from luthier.runtime.errors import Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.scoring.graders.models import Ask

if TYPE_CHECKING:
    from luthier.evaluate.harness.load import HarnessTask

__all__ = ["run_served"]


def run_served(
    endpoint: Endpoint, tasks: Sequence[Task | HarnessTask], *, confidence: float = 0.95, ask: Ask | None = None
) -> list[TaskResult]:
    """Scores of all tasks, in their order.

    Args:
        endpoint: One model; its cache, budget and counts are its own.
        tasks: From `load_tasks`.
        confidence: Level of the intervals.
        ask: How graders ask models.

    Raises:
        RecipeError: tasks that a chat server cannot be asked, all of them.
        AccessError, RunFailed: as `Endpoint.chat_many`.
    """
    problems = [problem for task in tasks for problem in _unaskable(task)]
    if problems:
        raise RecipeError(problems=problems)
    results: list[TaskResult] = []
    for task in tasks:
        if isinstance(task, Task):
            results.append(_run(endpoint, task, confidence, ask))
        else:
            from luthier.evaluate.harness.model import EndpointModel
            from luthier.evaluate.harness.run import run_harness

            results += run_harness(EndpointModel(endpoint, label=task.name), task, confidence=confidence)
    return results


def _unaskable(task: Task | HarnessTask) -> list[Problem]:
    if not isinstance(task, Task):
        return []
    hint = "score it with the model on this machine"
    if task.metric == "loss":
        message = f"task `{task.name}`: metric `loss` needs log-likelihoods, which a chat endpoint does not tell"
        return [Problem(code="E549", message=message, hint=hint)]
    raw = [row for row in task.rows if row.conversation.kind != "chat"]
    if raw:
        message = f"task `{task.name}`: {len(raw)} of its rows are raw text, and a chat endpoint takes messages"
        ref = raw[0].ref
        return [Problem(code="E549", message=message, hint=hint, file=ref.file, line=ref.line)]
    return []


def _run(endpoint: Endpoint, task: Task, confidence: float, ask: Ask | None) -> TaskResult:
    requests = [ChatRequest(messages=row.messages, max_tokens=task.max_new_tokens) for row in task.rows]
    started = time.monotonic()
    with progress(f"{task.name}, {endpoint.settings.model}", len(requests)) as bar:
        replies = endpoint.chat_many(requests, on_answer=lambda: bar.advance(1))
    answers = [
        Answer(text=reply.text, finish_reason=reply.finish_reason, new_tokens=completion_tokens(reply))
        for reply in replies
    ]
    settings = {
        "decoding": "greedy",
        "max_new_tokens": task.max_new_tokens,
        "num_fewshot": task.num_fewshot,
        "fewshot_hash": task.fewshot_hash,
        "data_hash": task.data_hash,
        "pattern": task.pattern,
        "grader": task.grader,
        "harness": None,
        "server": endpoint.settings.base_url,
        "messages_hash": hash_json([[dict(message) for message in row.messages] for row in task.rows]),
        "cached_answers": sum(reply.cached for reply in replies),
    }
    seconds = time.monotonic() - started
    return answered(
        task, [""] * len(answers), answers, settings=settings, seconds=seconds, confidence=confidence, ask=ask
    )
