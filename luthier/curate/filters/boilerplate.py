"""Phrases of assistants about themselves, anywhere in an answer; last sentences that many answers share.

An ending is the last sentence, or last line, of an answer that has something before it, with at least four words, one
of them of letters only. Endings are compared without case, white space and marks. Those of at least `ending_share` of
all answers (and `ending_rows` of them) are shared.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.curate.filters.base import Change, Drop, Mark, Verdict
from luthier.curate.filters.edits import Edit
from luthier.curate.filters.parts import Answers, Part, answers_of, edit_answers
from luthier.data.types import Conversation
from luthier.recipe.filter_schema import BoilerplateFilter

__all__ = ["PHRASES", "Boilerplate", "ending_of"]

PHRASES = (
    "as an ai language model", "as a language model", "as an ai model", "as an ai assistant", "as an ai chatbot",
    "as a large language model", "as an artificial intelligence", "i am an ai language model",
    "i'm an ai language model", "i'm just an ai", "i am just an ai", "i'm only an ai", "as an ai developed by",
    "as an ai, i", "being an ai,", "my knowledge cutoff", "my training data only", "as of my last knowledge update",
    "as of my last training", "as of my knowledge cutoff", "my last update in", "i do not have personal opinions",
    "i don't have personal opinions", "i don't have personal experiences", "i do not have personal experiences",
    "trained by openai", "developed by openai", "created by openai", "created by anthropic",
)  # fmt: skip
"""As plain text; case does not count, and a curly apostrophe is a straight one."""

_SENTENCE_START = re.compile(r"(?:[.!?\u2026\u3002\uff01\uff1f][\"')\u201d\u2019*]*\s+|\n+)(?=\S)")
_MARKS = re.compile(r"[\W_]+")
_LEAST_WORDS = 4
_SHOWN = 100


def ending_of(text: str) -> tuple[int, str] | None:
    """(where the last sentence begins, its words) of an answer that says something before it."""
    bare = text.rstrip()
    tail = max(0, len(bare) - 400)
    starts = [found.end() for found in _SENTENCE_START.finditer(bare, tail)]
    if not starts or not bare[: starts[-1]].strip():
        return None
    words = _MARKS.sub(" ", bare[starts[-1] :].casefold()).split()
    if len(words) < _LEAST_WORDS or sum(word.isalpha() for word in words) < _LEAST_WORDS:
        return None
    return starts[-1], " ".join(words)


@dataclass(slots=True)
class Boilerplate:
    """Drop rows with a phrase; cut off or drop shared endings."""

    settings: BoilerplateFilter
    answers: Answers
    shared: dict[str, int] = field(default_factory=dict)
    """Shared endings and how many answers have each."""
    needed: int = 0

    def look(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        """Count the endings of all rows, then judge each."""
        if self.settings.endings != "keep":
            self._count(rows)
        phrases = [*PHRASES, *self.settings.phrases]
        pattern = re.compile("|".join(re.escape(_plain(phrase)) for phrase in phrases))
        for row in rows:
            yield self._phrase(row, pattern) or self._ending(row)

    def report(self) -> dict[str, Any]:
        """The shared endings."""
        if self.settings.endings == "keep":
            return {}
        most = sorted(self.shared.items(), key=lambda item: (-item[1], item[0]))
        return {"ending_needs": self.needed, "shared_endings": dict(most[:50])}

    def _count(self, rows: Sequence[Conversation]) -> None:
        counts: Counter[str] = Counter()
        answers = 0
        for row in rows:
            found = [ending_of(part.text) for part in self._parts(row)]
            answers += len(found)
            counts.update({words for ending in found if ending for words in [ending[1]]})
        self.needed = max(self.settings.ending_rows, math.ceil(self.settings.ending_share * answers))
        self.shared = {words: count for words, count in counts.items() if count >= self.needed}

    def _parts(self, row: Conversation) -> list[Part]:
        return answers_of(row, self.answers) if row.kind not in ("text", "segments") else []

    def _phrase(self, row: Conversation, pattern: re.Pattern[str]) -> Verdict:
        for part in answers_of(row, self.answers):
            found = pattern.search(_plain(part.text))
            if found is not None:
                return Drop(detail=f"{part.where} says: {found[0]}", mark=Mark(part.where, part.text, *found.span()))
        return None

    def _ending(self, row: Conversation) -> Verdict:
        if not self.shared:
            return None
        cut: list[tuple[Part, int, str]] = []
        for part in self._parts(row):
            ending = ending_of(part.text)
            if ending is not None and ending[1] in self.shared:
                cut.append((part, *ending))
        if not cut:
            return None
        part, start, words = cut[0]
        end = len(part.text.rstrip())
        mark = Mark(part.where, part.text, start, end)
        detail = f"{part.where} ends as {self.shared[words]:,} answers do: {part.text[start:end][:_SHOWN]!r}"
        if self.settings.endings == "drop":
            return Drop(detail=detail, mark=mark)

        def editor(text: str) -> list[Edit]:
            found = ending_of(text)
            if found is None or found[1] not in self.shared:
                return []
            return [Edit(len(text[: found[0]].rstrip()), len(text), "")]

        changed = edit_answers(row, editor, self.answers)
        if changed is row:  # the ending is spread over several parts of a message
            return Drop(detail=f"{detail}; it cannot be cut off", mark=mark)
        if changed.kind == "pair" and changed.answers[0] == changed.answers[1]:
            return Drop(detail=f"{detail}; without it the chosen and the rejected answer are the same", mark=mark)
        return Change(row=changed, what="trimmed", detail=detail, mark=mark)


def _plain(text: str) -> str:
    """Lower case, character for character, so that places stay."""
    lowered = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return lowered.replace("\u2019", "'")
