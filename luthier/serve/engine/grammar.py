"""Answers that must match a JSON schema: llguidance says which tokens may come next."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from luthier.runtime.errors import EnvironmentProblem, RecipeError

__all__ = ["Grammar", "GrammarState", "json_grammar", "supported"]

# Between two signs of JSON: a line feed and an indentation, and no more. A model can write blanks without end.
WHITE_SPACE = r"[ \n\t]{0,12}"
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def supported() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("llguidance") is not None


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar; `start` gives the state of one answer."""

    tokenizer: Any
    text: str

    def start(self) -> GrammarState:
        """A state at the beginning of an answer."""
        from llguidance import LLMatcher

        return GrammarState(LLMatcher(self.tokenizer, self.text, log_level=0))


class GrammarState:
    """How far one answer has come."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def accept(self, token: int) -> None:
        """The answer goes on with this token."""
        self._matcher.consume_token(token)

    def mask(self, logits: Tensor) -> None:
        """Set the (V,) logits of tokens that may not come next to minus infinity, in place.

        When the grammar has met a limit of its library, nothing is allowed but the end of the answer.
        """
        allowed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = allowed[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1).flatten()
        hidden = torch.ones(logits.shape[0], dtype=torch.bool)
        size = min(len(bits), len(hidden))
        hidden[:size] = bits[:size] == 0
        if not bool(hidden.all()):
            logits.masked_fill_(hidden.to(logits.device), float("-inf"))


def json_grammar(tokenizer: Any, schema: Mapping[str, Any] | None, stop_ids: Sequence[int]) -> Grammar:
    """The grammar of JSON that a schema allows, or of any JSON object.

    Raises:
        EnvironmentProblem: llguidance is not installed.
        RecipeError: the schema is not valid, or uses what the library does not know.
    """
    if not supported():
        raise EnvironmentProblem(
            code="S603", message="`response_format` needs the package llguidance",
            hint="pip install 'luthier[serve]'; or ask for JSON in the prompt, without `response_format`",
        )  # fmt: skip
    from llguidance import LLMatcher

    wanted = json.dumps(dict(ANY_OBJECT if schema is None else schema))
    text = LLMatcher.grammar_from_json_schema(wanted, overrides={"whitespace_pattern": WHITE_SPACE})
    wrapped = _wrapped(tokenizer, tuple(stop_ids))
    fault = LLMatcher.validate_grammar(text, wrapped)
    if fault and not fault.startswith("WARNING"):
        raise RecipeError(code="S604", message=f"the JSON schema cannot be used: {fault.splitlines()[0][:300]}")
    return Grammar(wrapped, text)


@lru_cache(maxsize=8)
def _wrapped(tokenizer: Any, stop_ids: tuple[int, ...]) -> Any:
    """llguidance's view of a tokenizer; building it takes about a second for a large vocabulary."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, eos_token=list(stop_ids) or None)
