"""An answer that is its question again: equal but for case, white space and the form of characters (NFKC)."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from luthier.curate.filters.base import Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, answers_of, prompts_of
from luthier.data.types import Conversation

__all__ = ["Echo"]


@dataclass(slots=True)
class Echo(RowFilter):
    """Drop such rows."""

    min_characters: int
    answers: Answers

    def judge(self, row: Conversation) -> Verdict:
        """Each answer against each user message: a chat may repeat a question of an earlier turn."""
        asked = {_plain(part.text) for part in prompts_of(row)}
        asked = {text for text in asked if len(text) >= self.min_characters}
        for part in answers_of(row, self.answers) if asked else ():
            if _plain(part.text) in asked:
                return Drop(
                    detail=f"{part.where} repeats the question", mark=Mark(part.where, part.text, 0, len(part.text))
                )
        return None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
