"""Decide which rows share a training sequence.

Rows of a few hundred tokens padded to 1,024 waste most of the work, so several rows are laid end
to end in one sequence of at most `capacity` tokens. Two heuristics look at the whole set, from the
longest row to the shortest, and the one with fewer sequences wins (the first on a tie):

- *Best-fit decreasing*: each row into the fullest pack that still has room. At most 11/9 of the
  fewest possible packs plus a constant (Johnson 1974); nearly perfect when some rows are short.
- *Completion*: one pack after the other, longest row first, ended as soon as one row or a pair of
  rows fills it exactly. Better when no row is short: on GSM8K with SmolLM2's template (97 to 570
  tokens, median 204) into 1,024 tokens, 99.1% full instead of 97.6%.

Pure: numbers in, indices out, the same answer every time. What keeps the rows of a pack from
seeing each other is not decided here but in `batch.py` (positions, document boundaries).

Units: tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from luthier.data.types import Pack

__all__ = ["efficiency", "one_by_one", "pack"]

# Pairs looked at before the next row is simply the longest that fits; a hit comes after a few.
_PAIRS_TRIED = 64


def pack(lengths: Sequence[int], capacity: int) -> list[Pack]:
    """Fill sequences of at most `capacity` tokens with rows of the given lengths.

    Every index of `lengths` occurs in exactly one pack and is never split. Packs come in the
    order in which they were opened (longest first row first). O(n log n) comparisons.

    Raises:
        ValueError: a length is below 1 or above `capacity` (rows are cut or dropped before packing).
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"row {index} has {length} tokens; packs hold 1 to {capacity}")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    fitted, completed = _best_fit(lengths, order, capacity), _completion(lengths, order, capacity)
    chosen = completed if len(completed) < len(fitted) else fitted
    return [Pack(tuple(rows), sum(lengths[row] for row in rows)) for rows in chosen]


def _best_fit(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    members: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> packs with exactly that room, never empty lists
    rooms: list[int] = []  # keys of `by_room`, ascending
    for index in order:
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
    return members


def _completion(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    waiting: dict[int, list[int]] = {}  # length -> rows of that length, never empty lists
    for index in reversed(order):
        waiting.setdefault(lengths[index], []).append(index)
    sizes = sorted(waiting)
    members: list[list[int]] = []
    while sizes:
        room = capacity
        rows: list[int] = []
        size: int | None = sizes[-1]
        while size is not None:
            rows.append(waiting[size].pop())
            room -= size
            if not waiting[size]:
                del waiting[size]
                del sizes[bisect_left(sizes, size)]
            size = _next_size(waiting, sizes, room)
        members.append(rows)
    return members


def _next_size(waiting: dict[int, list[int]], sizes: Sequence[int], room: int) -> int | None:
    """The length to add: one that fills the room, the longer of a pair that does, else the longest that fits."""
    if not sizes or room < sizes[0]:
        return None
    if room in waiting:
        return room
    last = bisect_right(sizes, room - sizes[0]) - 1  # the longest that leaves room for another row
    if last < 0:
        return sizes[bisect_right(sizes, room) - 1]
    for size in reversed(sizes[max(0, last - _PAIRS_TRIED) : last + 1]):
        other = waiting.get(room - size)
        if other and (room != 2 * size or len(other) > 1):
            return size
    return sizes[last]


def one_by_one(lengths: Sequence[int]) -> list[Pack]:
    """One pack per row, in the order of the rows: packing is off."""
    return [Pack((index,), length) for index, length in enumerate(lengths)]


def efficiency(packs: Sequence[Pack], capacity: int) -> float:
    """Share of the tokens of all packs that are real; 0 without packs."""
    return sum(item.tokens for item in packs) / (len(packs) * capacity) if packs else 0.0
