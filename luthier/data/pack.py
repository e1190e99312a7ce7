"""Decide which rows share a training sequence.

Rows of a few hundred tokens padded to 1,024 waste most of the work, so several rows are laid
end to end in one sequence of at most `capacity` tokens. Best-fit decreasing over the whole set:
rows from longest to shortest, each into the fullest pack that still has room. It needs at most
11/9 of the fewest possible packs, plus 6/9 (Dosa 2007 for first-fit decreasing; best-fit
decreasing obeys the same bound, Johnson 1974), and is nearly perfect for many short rows.

Pure: numbers in, indices out, the same answer every time. What keeps the rows of a pack from
seeing each other is not decided here but in `batch.py` (positions, document boundaries).

Units: tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from luthier.data.types import Pack

__all__ = ["efficiency", "one_by_one", "pack"]


def pack(lengths: Sequence[int], capacity: int) -> list[Pack]:
    """Fill sequences of at most `capacity` tokens with rows of the given lengths.

    Every index of `lengths` occurs in exactly one pack and is never split. Packs come in the
    order in which they were opened (longest first row first); equal lengths keep the order of
    their indices. O(n log n) comparisons: the free sizes are few, sorted, and searched by halving.

    Raises:
        ValueError: a length is below 1 or above `capacity` (rows are cut or dropped before packing).
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"row {index} has {length} tokens; packs hold 1 to {capacity}")
    members: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> packs with exactly that room, never empty lists
    rooms: list[int] = []  # keys of `by_room`, ascending
    for index in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[index]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            chosen, room = len(members), capacity
            members.append([])
        else:
            room = rooms[place]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
                del rooms[place]
        members[chosen].append(index)
        left = room - length
        if left:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(chosen)
    return [Pack(tuple(rows), sum(lengths[row] for row in rows)) for rows in members]


def one_by_one(lengths: Sequence[int]) -> list[Pack]:
    """One pack per row, in the order of the rows: packing is off."""
    return [Pack((index,), length) for index, length in enumerate(lengths)]


def efficiency(packs: Sequence[Pack], capacity: int) -> float:
    """Share of the tokens of all packs that are real; 0 without packs."""
    return sum(item.tokens for item in packs) / (len(packs) * capacity) if packs else 0.0
