"""Rows as the stages compare them: normalised parts, made when asked for and soon forgotten.

Normalised texts of a whole set would double its memory; a stage keeps a digest or a signature of each row
and asks again for the few rows that look alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Literal

from luthier.curate.normal import normaliser, numbers_of
from luthier.curate.text import On, text_of
from luthier.data.types import Conversation

__all__ = ["Views"]

_REMEMBERED = 4_096
_BETWEEN = "\x1e"
"""Stands between the messages of a part; no text has it after normalisation of white space."""


class Views:
    """Normalised texts of rows, by index."""

    def __init__(
        self,
        rows: Sequence[Conversation],
        *,
        on: On = "conversation",
        ignore: Collection[str] = ("unicode", "case", "whitespace"),
        numbers: Literal["same", "any"] = "same",
    ) -> None:
        self.rows, self.on, self._same_numbers = rows, on, numbers == "same"
        self._normalise = normaliser(ignore)
        self.numbers = lru_cache(_REMEMBERED)(self._numbers)

    def parts(self, row: int) -> tuple[str, ...]:
        """Parts of a row that are compared with the same parts of another."""
        return tuple(self._join(part) for part in text_of(self.rows[row], self.on).parts)

    def length(self, row: int) -> int:
        """Characters that are compared, as they stand in the file."""
        return text_of(self.rows[row], self.on).length

    def digest(self, row: int) -> bytes:
        """16 bytes: equal for rows that are exact duplicates."""
        compared = text_of(self.rows[row], self.on)
        texts = [compared.turns, *map(self._normalise, compared.context), "", *map(self._join, compared.parts)]
        return _hash(texts)

    def context(self, row: int) -> bytes:
        """8 bytes: equal for rows whose context is equal and that have as many parts."""
        compared = text_of(self.rows[row], self.on)
        return _hash([str(len(compared.parts)), *map(self._normalise, compared.context)])[:8]

    def may_be_one(self, first: int, second: int) -> bool:
        """Whether the numbers of one row are all among those of the other; always, where numbers do not count.

        A row that is cut off has fewer numbers than the whole one. A row of which a number was changed has one
        that the other lacks, both ways round.
        """
        if not self._same_numbers:
            return True
        one, other = self.numbers(first), self.numbers(second)
        return one <= other or other <= one

    def _numbers(self, row: int) -> Counter[str]:
        return numbers_of(self.parts(row))

    def _join(self, texts: Sequence[str]) -> str:
        return _BETWEEN.join(map(self._normalise, texts))


def _hash(texts: Sequence[str]) -> bytes:
    """Hash of texts in order; lengths keep them apart."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
