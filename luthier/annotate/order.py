"""In which order rows are shown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from luthier.annotate.items import Item
from luthier.data.column import number_in
from luthier.data.rows import Faults, row_problem

__all__ = ["ORDERS", "Order", "ordered", "seeded"]

Order = Literal["file", "random", "uncertain", "low", "high"]
ORDERS = ("file", "random", "uncertain", "low", "high")


def ordered(items: Sequence[Item], order: Order, *, seed: int, score: str | None, around: float) -> list[int]:
    """Indices of items in the order to show them; ties stay in the order of the files.

    Args:
        items: All of them.
        order: `file`; `random` (by a hash of seed and content, so that appended rows move no other); by the column
            `score`: `low` or `high` first, or `uncertain`: nearest to `around` first.
        seed: Of `random`.
        score: Column with a number; dots reach into nested objects.
        around: The least certain score: 0.5 of a probability.

    Raises:
        DataError: rows without the column, or without a finite number in it; all are told.
    """
    places = range(len(items))
    if order == "file":
        return list(places)
    if order == "random":
        return sorted(places, key=lambda place: seeded(seed, items[place].hash))
    assert score is not None, "the caller checked it"
    scores = _scores(items, score)
    if order == "uncertain":
        return sorted(places, key=lambda place: abs(scores[place] - around))
    return sorted(places, key=lambda place: scores[place], reverse=order == "high")


def seeded(seed: int, *words: str) -> int:
    """A number of 64 bits that looks random and is the same each time."""
    text = "\0".join([str(seed), *words]).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _scores(items: Sequence[Item], column: str) -> list[float]:
    scores: list[float] = []
    faults = Faults()
    for item in items:
        number = number_in(item.row.value, column)
        if isinstance(number, str):
            message = f"{number} `{column}`, which --order needs as a number"
            faults.add(row_problem("D292", message, item.ref, hint="mend the row, or --order random"))
        else:
            scores.append(number)
    faults.raise_if_any()
    return scores
