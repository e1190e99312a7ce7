"""Length of prompt, answer and both, in tokens, characters or words: of the texts, without a template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.curate.filters.base import Drop, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, sides, whole_prompt
from luthier.data.types import Conversation
from luthier.recipe.filter_schema import LengthFilter
from luthier.runtime.errors import RecipeError

__all__ = ["Length", "counter"]


def counter(unit: str, tokenizer: Any) -> Callable[[str], int]:
    """How long a text is.

    Raises:
        RecipeError: tokens without a tokenizer.
    """
    if unit == "characters":
        return len
    if unit == "words":
        return lambda text: len(text.split())
    if tokenizer is None:
        hint = "give --tokenizer FOLDER, or --set length.unit=characters"
        raise RecipeError(code="D252", message="filter `length` counts tokens, and there is no tokenizer", hint=hint)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0


@dataclass(slots=True)
class Length(RowFilter):
    """Drop rows outside of the bounds; of preferences each answer is measured with its prompt."""

    settings: LengthFilter
    count: Callable[[str], int]
    answers: Answers

    def judge(self, row: Conversation) -> Verdict:
        """The first bound that is broken."""
        for side, conversation in sides(row, self.answers):
            prompt, answer = map(self.count, whole_prompt(conversation))
            for name, size in (("prompt", prompt), ("answer", answer), ("total", prompt + answer)):
                low, high = (getattr(self.settings, f"{bound}_{name}") for bound in ("min", "max"))
                if low is not None and size < low:
                    return self._drop(side, name, size, f"min_{name} is {low:,}")
                if high is not None and size > high:
                    return self._drop(side, name, size, f"max_{name} is {high:,}")
        return None

    def _drop(self, side: str, name: str, size: int, bound: str) -> Drop:
        what = {"prompt": "prompt", "answer": "answer", "total": "prompt and answer"}[name]
        return Drop(detail=f"{side}{what}: {size:,} {self.settings.unit}; {bound}", facts={"length": size})
