"""Work on many items dealt to the processes of a run, and the results together again, in order.

`Spread()` is one process: it does everything. `train/distributed/group.py` makes the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Spread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def _alone(name: str, value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Who this process is among those that share the work."""

    rank: int = 0
    size: int = 1
    exchange: Callable[[str, Any], list[Any]] = _alone
    """(name, value of this process) -> the values of all, by rank. Waits for the slowest."""

    @property
    def is_main(self) -> bool:
        """This process goes on with the results."""
        return self.rank == 0

    def map(self, name: str, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
        """`work(items)`, each process on its part (every `size`-th item); the whole, in the order of `items`.

        `work` gives one result an item. `name` is used once in a run.
        """
        mine = items[self.rank :: self.size]
        parts = self.exchange(name, list(work(mine)) if mine else [])
        whole: list[Result] = [parts[index % self.size][index // self.size] for index in range(len(items))]
        return whole
