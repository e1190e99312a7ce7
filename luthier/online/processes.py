"""The processes of a run as online RL sees them. No torch; `train/distributed/group.py` is what several are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["Alone", "Processes"]

Result = TypeVar("Result")


class Processes(Protocol):
    """All processes of a run, seen from one of them."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """This process writes the run's files and prints."""
        ...

    def from_main(self, name: str, action: Callable[[], Result]) -> Result:
        """What `action` returns in process 0, in every process, however long it takes. `name` is used once in a run.

        Raises:
            LuthierError: in process 0 what `action` raised, elsewhere one that says so.
        """
        ...


class Alone:
    """One process."""

    rank = 0
    size = 1
    is_main = True

    def from_main(self, name: str, action: Callable[[], Result]) -> Result:
        """Here."""
        return action()
