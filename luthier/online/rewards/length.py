"""A penalty for long completions: the soft overlong punishment of DAPO (arXiv:2503.14476, equation 13).

0                           up to max_tokens - soft_tokens
(free - tokens) / soft      falling linearly, where free = max_tokens - soft_tokens
-1                          from max_tokens on
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.online.rewards.base import Completions, Value

__all__ = ["LengthReward"]


@dataclass(frozen=True, slots=True)
class LengthReward:
    """0 down to -1."""

    label: str
    weight: float
    max_tokens: int
    soft_tokens: int

    def unusable(self, reference: str | None) -> str | None:
        """It needs none."""
        return None

    def score(self, batch: Completions) -> list[Value]:
        """By the number of sampled tokens, the stop token included."""
        free = self.max_tokens - self.soft_tokens
        return [max(-1.0, min(0.0, (free - len(ids)) / self.soft_tokens)) for ids in batch.ids]
