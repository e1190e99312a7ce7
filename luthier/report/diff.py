"""Word-level difference of two texts."""

from __future__ import annotations

import difflib
import re

__all__ = ["Piece", "word_diff"]

# A piece of text and whether the other side lacks it.
Piece = tuple[str, bool]

# Below this share of common words, marks are noise: nearly everything would be marked.
_LEAST_IN_COMMON = 0.3
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def word_diff(before: str, after: str) -> tuple[list[Piece], list[Piece], bool]:
    """Split two texts into pieces that are common or their own.

    Returns the pieces of `before`, the pieces of `after`, and whether they are marked: texts that
    have little in common come back whole and unmarked.
    """
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < _LEAST_IN_COMMON:
        return [(before, False)], [(after, False)], False
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        own = kind != "equal"
        left += [("".join(old[start:end]), own)] if end > start else []
        right += [("".join(new[new_start:new_end]), own)] if new_end > new_start else []
    return left, right, True
