"""Hold out validation rows, find duplicates, apply source weights. Pure, seeded, decided by content.

Each row draws a number in [0, 1) from its content and the seed; the rows below `fraction` are held out.
So the side of a row depends on nothing but itself: appending or reordering rows moves none, and
exact duplicates always land on one side. Rows of preferences draw by their prompt, so that all answers to it do, too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from luthier.data.content import group_hash, row_hash
from luthier.data.types import Conversation
from luthier.recipe.schema import ValidationSection
from luthier.runtime.errors import DataError, Problem

__all__ = ["count_duplicates", "draw", "expand_by_weight", "held_out", "overlapping", "split_validation"]


def split_validation(
    conversations: Sequence[Conversation],
    section: ValidationSection,
    *,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> tuple[list[Conversation], list[Conversation]]:
    """Split rows into training and validation, each in the order given.

    `max_rows` keeps the rows with the smallest draws (copies of a row together or not at all) and gives the
    others back to training. While it binds, an appended row may take the place of another, which then
    returns to training; a training row never turns into a validation row by appending others.

    Args:
        conversations: All training rows.
        section: `fraction` and `max_rows` are used; with `fraction` 0 nothing is held out.
        seed: `train.seed`.
        groups: Hash of a row -> hash of the row whose draw decides for its group; other rows decide for themselves.

    Raises:
        DataError: a fraction above 0 holds out no row, or every row.
    """
    if section.fraction == 0.0:
        return list(conversations), []
    own = map(group_hash, conversations)
    hashes = [groups.get(key, key) for key in own] if groups else list(own)
    apart = held_out(hashes, section, seed)
    train = [row for row, key in zip(conversations, hashes, strict=True) if key not in apart]
    validation = [row for row, key in zip(conversations, hashes, strict=True) if key in apart]
    return train, validation


def held_out(hashes: Collection[str], section: ValidationSection, seed: int) -> set[str]:
    """Of the hashes of all rows, those that `fraction` and `max_rows` hold out.

    Raises:
        DataError: a fraction above 0 holds out no row, or every row.
    """
    fraction, max_rows = section.fraction, section.max_rows
    copies = Counter(key for key in hashes if draw(key, seed) < fraction)
    drawn = sorted((draw(key, seed), key) for key in copies)
    apart = set(copies) if max_rows is None else _up_to(max_rows, drawn, copies)
    count = sum(copies[key] for key in apart)
    if count in (0, len(hashes)):
        side = "every" if count else "no"
        raise DataError(
            problems=[
                Problem(
                    code="D215",
                    message=f"`data.validation.fraction: {fraction:g}` holds out {side} row "
                    f"of {len(hashes):,} ({len(set(hashes)):,} different ones)",
                    hint="choose another fraction, or give validation rows of their own with `data.validation.path`",
                )
            ]
        )
    return apart


def _up_to(max_rows: int, drawn: Sequence[tuple[float, str]], copies: Counter[str]) -> set[str]:
    """Those with the smallest draws, copies of a row together, as long as the rows are at most `max_rows`."""
    kept: set[str] = set()
    rows = 0
    for _, key in drawn:
        rows += copies[key]
        if rows > max_rows:
            break
        kept.add(key)
    return kept


def draw(key: str, seed: int) -> float:
    """Uniform number in [0, 1), a function of the row and the seed alone."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def count_duplicates(conversations: Sequence[Conversation]) -> int:
    """Rows that say exactly what an earlier row says."""
    return len(conversations) - len({row_hash(conversation) for conversation in conversations})


def overlapping(train: Sequence[Conversation], validation: Sequence[Conversation]) -> list[int]:
    """Indices of validation rows that also are training rows, word for word."""
    known = {row_hash(conversation) for conversation in train}
    return [index for index, conversation in enumerate(validation) if row_hash(conversation) in known]


def expand_by_weight(n: int, weight: float, seed: int, *, hashes: Sequence[str] | None = None) -> list[int]:
    """Indices of the rows of a source to use in one epoch, pass after pass.

    Weight 2 gives every row twice; 0.5 about half of them; 1.5 every row once, then about half again.
    Each row is in or out of the fractional part by its own draw, so the choice is stable:
    the same seed gives the same rows, and rows appended later change nothing about the earlier ones.

    Args:
        n: Rows of the source.
        weight: Uses of each row, > 0.
        seed: `train.seed`.
        hashes: Content hash of each row (`row_hash`); without them a row draws by its index.
    """
    whole, part = divmod(weight, 1.0)
    indices = [index for _ in range(int(whole)) for index in range(n)]
    keys = hashes if hashes is not None else [str(index) for index in range(n)]
    return indices + [index for index in range(n) if draw(f"weight:{keys[index]}", seed) < part]
