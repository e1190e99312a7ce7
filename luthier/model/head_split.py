"""How many heads a process has inside attention, where several share a sequence (sequence parallelism).

With H query heads and G key/value heads, each of S processes has H / S query heads, and G / S key/value heads where
there are enough of them; else one, which S / G processes have in common. Pure: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.runtime.errors import Problem

__all__ = ["HeadSplit", "unequal_heads"]


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """Heads of a layer, and how many of them each process has inside attention."""

    heads: int
    key_value_heads: int
    size: int
    """Processes that share a sequence."""

    @property
    def problem(self) -> str | None:
        """Why these heads cannot be split so; None: they can."""
        if self.heads % self.size:
            return f"its {self.heads} query heads cannot be shared by {self.size} processes"
        if self.key_value_heads % self.size and self.size % self.key_value_heads:
            return (
                f"its {self.key_value_heads} key/value heads can be shared by {self.size} processes neither whole nor "
                "each by the same number of them"
            )
        return None

    @property
    def copies(self) -> int:
        """Processes that have the same key/value head."""
        return max(1, self.size // self.key_value_heads)

    @property
    def local_heads(self) -> int:
        """h."""
        return self.heads // self.size

    @property
    def local_key_value_heads(self) -> int:
        """g."""
        return max(1, self.key_value_heads // self.size)


def unequal_heads(model: str, split: HeadSplit) -> Problem:
    """The error for a split that has a problem."""
    key = "distributed.sequence_parallel_size"
    fitting = [n for n in range(2, split.heads + 1) if HeadSplit(split.heads, split.key_value_heads, n).problem is None]
    return Problem(
        code="L232", message=f"`{key}: {split.size}` with {model}: {split.problem}",
        hint=f"with this model it may be {', '.join(map(str, fitting))}, or 1 to share no sequence",
    )  # fmt: skip
