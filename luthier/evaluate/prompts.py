"""Rows of a task as token ids: the prompts to answer, or whole rows with their references to score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.data.template import ChatTemplate
from luthier.data.tokenize import tokenize_conversation
from luthier.data.types import Conversation, Dropped, Example
from luthier.evaluate.task import Task, TaskRow
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.errors import DataError, LuthierError, Problem
from luthier.runtime.hashing import hash_json

__all__ = ["Prompt", "Renderer"]

ControlTokens = Literal["text", "allow", "error"]
# Tokens of a row when the model states no length.
UNBOUNDED = 1 << 20


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is given."""

    ids: list[int]
    text: str


class Renderer:
    """Turns rows into tokens as training does.

    Args:
        tokenizer: Of the model that is scored.
        template_kwargs: As `model.chat_template_kwargs`.
        control_tokens: As `data.control_tokens`.
        room: Tokens the model holds, or None when it does not say.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template_kwargs: Mapping[str, Any],
        control_tokens: ControlTokens,
        room: int | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, kwargs=dict(template_kwargs), control_tokens=control_tokens)
        self.room = room or UNBOUNDED
        self.section = DataSection(
            train=[Source(path="task")],
            max_length=self.room,
            overlong="error",
            loss_on="last_assistant",
            control_tokens=control_tokens,
        )

    def template_hash(self) -> str:
        """Changes when any prompt could: template, its variables, control tokens."""
        own = getattr(self.tokenizer, "chat_template", None)
        return hash_json([own, self.template.kwargs, self.template.control_tokens])

    def prompts(self, task: Task) -> list[Prompt]:
        """Prompts of all rows.

        Raises:
            DataError: every row that cannot be rendered, or that leaves no room for the answer, with its line.
        """
        prompts, problems = [], []
        for row in task.rows:
            try:
                prompt = self._prompt(row)
            except LuthierError as error:
                problems += [_at(row, problem) for problem in error.problems]
                continue
            if not prompt.ids:
                problems.append(_at(row, Problem(code="E521", message="the prompt has no tokens")))
            elif len(prompt.ids) + task.max_new_tokens > self.room:
                message = (
                    f"the prompt has {len(prompt.ids)} tokens and {task.max_new_tokens} may follow; "
                    f"the model holds {self.room}"
                )
                hint = "lower the task's `max_new_tokens` or `num_fewshot`, or leave the row out"
                problems.append(_at(row, Problem(code="E522", message=message, hint=hint)))
            prompts.append(prompt)
        if problems:
            raise DataError(problems=problems)
        return prompts

    def examples(self, task: Task) -> list[Example]:
        """Whole rows with their references as targets, for the held-out loss.

        Raises:
            DataError: every row whose tokens cannot be told apart, or that is too long.
        """
        examples, problems = [], []
        for row in task.rows:
            try:
                found = self._example(row)
            except LuthierError as error:
                problems += [_at(row, problem) for problem in error.problems]
                continue
            if isinstance(found, Dropped):
                problems.append(
                    _at(row, Problem(code="E523", message=f"cannot be scored: {found.reason}: {found.detail}"))
                )
            else:
                examples.append(found)
        if problems:
            raise DataError(problems=problems)
        return examples

    def _prompt(self, row: TaskRow) -> Prompt:
        if row.conversation.kind == "chat":
            ids = self.template.prompt_ids(row.messages, row.conversation.tools)
        else:
            example = self._example(row)
            if isinstance(example, Dropped):
                raise DataError(code="E523", message=f"cannot be asked: {example.reason}: {example.detail}")
            # Ids up to the first trained one: the prompt as training saw it.
            first = next(index for index, weight in enumerate(example.weights) if weight)
            ids = list(example.ids[:first])
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Prompt(ids, text)

    def _example(self, row: TaskRow) -> Example | Dropped:
        found: Example | Dropped = tokenize_conversation(_with_shots(row), self.template, section=self.section)
        return found


def _with_shots(row: TaskRow) -> Conversation:
    """The row with its worked examples; weights of the row's own turns stay with them."""
    conversation = row.conversation
    extra = len(row.messages) + 1 - len(conversation.messages)
    if conversation.kind != "chat" or extra == 0:
        return conversation
    last = conversation.messages[-1]
    index = len(conversation.messages) - 1
    spans = conversation.span_weights.get(index)
    return replace(
        conversation,
        messages=(*row.messages, last),
        message_weights=(*([0.0] * len(row.messages)), *conversation.message_weights[index : index + 1])
        if conversation.message_weights
        else (),
        span_weights={} if spans is None else {index + extra: spans},
    )


def _at(row: TaskRow, problem: Problem) -> Problem:
    """The problem at the row's place, unless it knows a better one."""
    if problem.file is not None:
        return problem
    return replace(problem, file=row.ref.file, line=row.ref.line)
