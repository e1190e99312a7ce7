"""A reward of the user's own: a function in a Python file, called as TRL calls reward functions.

    def function(prompts, completions, **columns) -> list[float]

`prompts` are lists of messages (strings for raw rows), `completions` lists of one assistant message (strings for raw
rows); `reference`, `completion_ids` and every column of the data come as lists of the same length, and TRL's
`trainer_state`, `log_extra` and `log_metric` as they are. None in the result: nothing to say about that completion.

It is the user's code and runs with the user's rights. What it raises or returns wrongly ends the run with the place in
the file; nothing it does becomes a silent 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.data.prompt_rows import PromptRow
from luthier.online.rewards.base import Completions, Value, one_answer
from luthier.runtime import user_code
from luthier.runtime.errors import LuthierError, Problem, RecipeError, RunFailed
from luthier.runtime.user_code import deepest_line, first_line

__all__ = ["PythonReward", "load_function"]


@dataclass(frozen=True, slots=True)
class PythonReward:
    """A loaded function."""

    label: str
    weight: float
    file: str
    function: Callable[..., Any]

    def unusable(self, reference: str | None) -> str | None:
        """The function decides for itself."""
        return None

    def score(self, batch: Completions) -> list[Value]:
        """Call the function.

        Raises:
            RunFailed: it raised, or returned something else than a number for each completion.
        """
        values, fault = self._call(batch)
        if fault is not None:
            raise RunFailed(problems=[fault])
        return values

    def try_on(self, row: PromptRow) -> None:
        """Call it once, with a row of the data whose reference stands for the completion.

        Raises:
            RecipeError: as `score`, before anything is trained.
        """
        _, fault = self._call(one_answer(row))
        if fault is not None:
            raise RecipeError(problems=[_tried(fault, row)])

    def _call(self, batch: Completions) -> tuple[list[Value], Problem | None]:
        names = list(dict.fromkeys(name for columns in batch.columns for name in columns))
        columns = {name: [row.get(name) for row in batch.columns] for name in names}
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(batch.prompts, batch.texts, strict=True)
        ]
        try:
            found = self.function(
                prompts=list(batch.prompts), completions=completions, reference=list(batch.references),
                completion_ids=[list(ids) for ids in batch.ids], **columns, **batch.extra,
            )  # fmt: skip
        except LuthierError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a user's function raises
            return [], self._raised(error)
        return self._checked(found, len(batch))

    def _checked(self, found: Any, count: int) -> tuple[list[Value], Problem | None]:
        if inspect.iscoroutine(found):
            found.close()
            return [], self._wrong("is a coroutine function; write `def`, not `async def`")
        if isinstance(found, str | bytes | dict) or not hasattr(found, "__iter__"):
            return [], self._wrong(f"returned {type(found).__name__} instead of a list of numbers")
        items = list(found)
        if len(items) != count:
            return [], self._wrong(f"returned {len(items)} numbers for {count} completions")
        values: list[Value] = []
        for index, item in enumerate(items):
            value = item.item() if hasattr(item, "item") else item
            if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
                return [], self._wrong(f"returned {value!r} for completion {index}: expected a finite number or None")
            values.append(None if value is None else float(value))
        return values, None

    def _raised(self, error: Exception) -> Problem:
        """The deepest line of the user's file, else where the function begins."""
        line, source = deepest_line(error, self.file)
        line = line or first_line(self.function)
        message = f"reward `{self.label}` raised {type(error).__name__}: {error}"
        return Problem(code="T491", message=message, file=self.file, line=line, source=source)

    def _wrong(self, what: str) -> Problem:
        message = f"reward `{self.label}` {what}"
        hint = "it is called as function(prompts, completions, **columns) and returns one number a completion"
        return Problem(code="T491", message=message, file=self.file, line=first_line(self.function), hint=hint)


def load_function(text: str, file: str, name: str) -> Callable[..., Any]:
    """Import the file and take the function out of it.

    Args:
        text: as the recipe has it, for messages.
        file: path of the file.
        name: of the function.

    Raises:
        RecipeError: the file cannot be imported, has no such function, or one that takes no further columns.
    """
    function = user_code.load_function(text, file, name, code="T490", prefix="luthier_reward")
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        problem = Problem(
            code="T490", message=f"`{name}` takes no further columns, and TRL passes all of them", file=file,
            line=first_line(function), hint="end its parameters with **columns",
        )  # fmt: skip
        raise RecipeError(problems=[problem])
    return function


def _tried(fault: Problem, row: PromptRow) -> Problem:
    message = f"{fault.message} (called once to try it, with the row {row.ref} and its reference as the completion)"
    return Problem(
        code=fault.code, message=message, file=fault.file, line=fault.line, source=fault.source, hint=fault.hint
    )
