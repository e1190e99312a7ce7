"""A request in a slot, and what an engine counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.serve.engine.request import Request
from luthier.serve.engine.sampling import Chooser
from luthier.serve.engine.text import TextStream

__all__ = ["Counters", "Row"]


@dataclass(slots=True)
class Counters:
    """What an engine has done so far."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens found in the prefix store."""
    generated_tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    waits: int = 0
    """Times the engine waited for tokens from a GPU."""


@dataclass(eq=False, slots=True)
class Row:
    """A request in a slot."""

    request: Request
    chooser: Chooser
    text: TextStream
    read: int = 0
    """Prompt tokens read."""
    made: list[int] = field(default_factory=list)
    started: int = 0
    """Tokens made, and those under way on a GPU."""
    gone: bool = False

    @property
    def reading(self) -> bool:
        """Whether a part of the prompt is not read yet."""
        return self.read < len(self.request.prompt)
