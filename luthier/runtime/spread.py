"""Work on many items dealt to the processes of a run, and the results together again, in order.

`Spread()` is one process: it does everything. `train/distributed/group.py` makes the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from luthier.runtime.console import note
from luthier.runtime.errors import RunFailed

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

    def map(
        self, name: str, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], *, digest: str = ""
    ) -> list[Result]:
        """`work(items)`, each process on its part (every `size`-th item); the whole, in the order of `items`.

        Args:
            name: Used once in a run.
            items: The same in every process.
            work: Gives one result an item.
            digest: Hash of the items: processes with others would answer other questions.

        Raises:
            RunFailed: a process gave more or fewer results than it had items, or had other items than process 0.
        """
        mine = items[self.rank :: self.size]
        found = self.exchange(name, (digest, list(work(mine)) if mine else []))
        for rank, (its_digest, part) in enumerate(found):
            _require_whole(name, rank, part, expected=len(items[rank :: self.size]), same=its_digest == found[0][0])
        parts = [part for _, part in found]
        if self.size > 1:
            note(f"{name}: {', '.join(str(len(part)) for part in parts)} by process", style="dim")
        whole: list[Result] = [parts[index % self.size][index // self.size] for index in range(len(items))]
        return whole


def _require_whole(name: str, rank: int, part: Sequence[Any], *, expected: int, same: bool) -> None:
    if not same:
        raise RunFailed(
            code="L302", message=f"{name}: process {rank} has other rows than process 0",
            hint="all processes must read the same files, with the same tokenizer",
        )  # fmt: skip
    if len(part) != expected:
        raise RunFailed(code="L301", message=f"{name}: process {rank} gave {len(part)} results for {expected} rows")
