"""Keys and values of finished answers, kept so that a prompt which begins alike need not be read again.

The next turn of a chat begins with everything said so far, and many prompts with one system message.
What is kept belongs to one adapter (or the base) and is given up oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.serve.engine.adapters import Adapter

__all__ = ["Kept", "PrefixStore"]

# A shorter beginning is not worth the copy.
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Tokens, and what the slots' `copy_out` gave for them."""

    ids: tuple[int, ...]
    adapter: Adapter | None
    layers: Any


class PrefixStore:
    """At most `max_tokens` tokens; 0 keeps nothing. `release` is called with the `layers` of what is given up."""

    def __init__(self, max_tokens: int, release: Callable[[Any], None] = lambda layers: None) -> None:
        self.max_tokens, self._release = max_tokens, release
        self._kept: list[Kept] = []
        """Last used last."""

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return sum(len(kept.ids) for kept in self._kept)

    def wants(self, ids: Sequence[int], adapter: Adapter | None) -> bool:
        """Whether keeping these is of use: not if a longer answer covers them."""
        if not MIN_TOKENS <= len(ids) <= self.max_tokens:
            return False
        return not any(kept.adapter is adapter and kept.ids[: len(ids)] == tuple(ids) for kept in self._kept)

    def keep(self, new: Kept) -> None:
        """Take something up, in place of what it covers and of what was unused for longest."""
        covered = [kept for kept in self._kept if kept.adapter is new.adapter and new.ids[: len(kept.ids)] == kept.ids]
        self._kept = [kept for kept in self._kept if kept not in covered]
        self._kept.append(new)
        while self.tokens > self.max_tokens:
            covered.append(self._kept.pop(0))
        for kept in covered:
            self._release(kept.layers)

    def clear(self) -> None:
        """Give everything up."""
        for kept in self._kept:
            self._release(kept.layers)
        self._kept = []

    def find(self, ids: Sequence[int], adapter: Adapter | None) -> tuple[Kept, int] | None:
        """What shares the longest beginning with a prompt, and how many tokens; one token is always left to read."""
        best, longest = None, MIN_TOKENS - 1
        for kept in self._kept:
            if kept.adapter is adapter:
                length = _common(kept.ids, ids[:-1])
                if length > longest:
                    best, longest = kept, length
        if best is None:
            return None
        self._kept.remove(best)
        self._kept.append(best)
        return best, longest


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal tokens at the start."""
    size = min(len(one), len(other))
    if one[:size] == tuple(other[:size]):
        return size
    return next(place for place in range(size) if one[place] != other[place])
