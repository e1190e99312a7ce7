"""Whether a quotation stands in a passage, and where.

Word for word, but for white space, and for typographic marks that models write in the place of plain ones.
"""

from __future__ import annotations

import re

__all__ = ["find_quote", "words_of"]

# One character each, so that offsets stay right.
_PLAIN = str.maketrans({
    "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{NON-BREAKING HYPHEN}": "-", "\N{MINUS SIGN}": "-",
    "\N{NO-BREAK SPACE}": " ",
})  # fmt: skip


def words_of(text: str) -> list[str]:
    """Words between white space."""
    return text.split()


def find_quote(quote: str, passage: str, *, least_words: int) -> tuple[int, int] | None:
    """(start, end) of the quotation in the passage; None when it is not there, or is too short to prove anything.

    Args:
        quote: The model's words.
        passage: What it was shown.
        least_words: Fewest words that count, unless the passage has fewer.
    """
    words = words_of(quote.translate(_PLAIN).strip().strip('"').strip())
    if len(words) < min(least_words, len(words_of(passage))) or not words:
        return None
    whole = r"(?<!\w)" if words[0][0].isalnum() else "", r"(?!\w)" if words[-1][-1].isalnum() else ""
    found = re.search(whole[0] + r"\s+".join(map(re.escape, words)) + whole[1], passage.translate(_PLAIN))
    return (found.start(), found.end()) if found else None
