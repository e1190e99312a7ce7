"""What the engine is asked, and what it answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from luthier.serve.engine.adapters import Adapter
    from luthier.serve.engine.grammar import GrammarState

__all__ = ["FinishReason", "Piece", "Request", "Sampling", "TokenInfo"]

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The meaning of each number is OpenAI's."""

    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token the answer already has."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time the answer has the token."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids."""
    seed: int | None = None
    """Same seed, same request: same answer (on one machine; other rows of a batch can move the last bit)."""
    logprobs: int | None = None
    """Tell the log-probability of each token and of this many likeliest ones; None for neither."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """Log-probability (natural, of the model's own distribution) of one token and of the likeliest ones."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """News of one request. The texts of all pieces together are the answer."""

    text: str = ""
    ids: tuple[int, ...] = ()
    """New tokens; a stop token is among them, though not in the text."""
    infos: tuple[TokenInfo, ...] = ()
    finish: FinishReason | None = None
    """Set in the last piece."""
    problem: str | None = None
    """What went wrong, when `finish` is `error` or `timeout`."""


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One answer to be made."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    tokenizer: Any
    """Turns ids into text."""
    stop_ids: frozenset[int]
    on_piece: Callable[[Piece], None]
    """Called in the engine's thread; must return at once."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; not part of it."""
    adapter: Adapter | None = None
    grammar: GrammarState | None = None
    """What the answer must match; a state of its own for every request."""
    deadline: float | None = None
    """`time.monotonic()` at which the request is given up."""
    number: int = field(default_factory=lambda: next(_numbers))
    cancelled: bool = False
    reused: int = 0
    """Prompt tokens that were not read again."""

    @property
    def width(self) -> int:
        """Columns of the cache it may need."""
        return len(self.prompt) + self.max_new_tokens
