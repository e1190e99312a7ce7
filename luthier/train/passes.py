"""Passes without gradients, dealt to the processes: batches of their own, but as many passes on each where every
pass is one of all processes (`Engine.passes_together`): those with fewer batches make some more that count nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from luthier.train.step import Trainer

__all__ = ["dealt"]

Group = TypeVar("Group")


def dealt(trainer: Trainer, groups: Sequence[Group]) -> tuple[list[Group], int]:
    """This process' part of `groups`, like cards; and how many passes more it takes part in."""
    place, count = trainer.dealt
    mine = list(groups[place::count])
    most = -(-len(groups) // count)
    return mine, most - len(mine) if trainer.engine.passes_together else 0
