"""Answers that were cut off: evidence is needed, the lack of a full stop alone is none.

An answer counts as cut if
  it opens a code block (```) and does not close it;
  it begins as a JSON object or list and ends inside it;
  its last line ends with a comma, an opening bracket, a dash, an operator, a colon;
  its last line ends with a word that cannot end a sentence (English: the, of, and, ...; is, with, ... if it is long);
  its last sentence has at least `min_words` words and no end mark, and all other sentences and lines of prose have one.
Numbers, units, lists, headings, tables, code, JSON, links and short answers without an end mark stay.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from luthier.curate.filters.base import Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, answers_of
from luthier.data.types import Conversation

__all__ = ["OPEN_WORDS", "WEAK_WORDS", "Endings", "cut_off"]

OPEN_WORDS = frozenset(
    "a an the of from into onto and or nor but than because although unless whether my your our their".split()
)
"""English words that end no statement, in lines of three words or more."""
WEAK_WORDS = frozenset(
    "to in on at by for with without that which who whose if when while as is are was were be been has have had will "
    "would shall should can could may might must his her its these those every between among through during about "
    "against per".split()
)
"""Words that end short replies and lines of lists (`yes, I can`, `turn the light on`), and no sentence of `min_words`
words."""

_END_MARKS = ".!?\u2026\u3002\uff01\uff1f\uff0e\u061f\u06d4\u0964\u0589\u1362\u17d4"
_CLOSERS = "\"'\u201d\u2019\u00bb\u203a)]}>*_`~\uff09\u300d\u300f\u3011|"
_DANGLING = re.compile(
    r"(?:[,(\[{\u3001\uff0c\uff08]|\s[-\u2013\u2014]|\u2014|(?<=[\w\s)])[=+/\u00d7\u00f7]|(?<=\w):)\Z"
)
_LIST = re.compile(r"\s*(?:[-*+\u2022\u2023\u25e6]\s|\(?\w{1,3}[.)]\s|#{1,6}\s|\||>)")
_LINK = re.compile(r"(?<!\S)\S*(?:https?://|www\.|@)\S*\Z")
_CODE = re.compile(
    r"[{};\\]|\w\(|\w\[|==|=>|->|::|</|^\s{4,}|^\s*(?:def|class|return|import|from|if|for|while|SELECT)\b"
)
_SENTENCE = re.compile(r"(?<=[.!?\u2026\u3002\uff01\uff1f])[\"')\u201d\u2019*]*\s+")
_WORD = re.compile(r"[^\W\d_][\w'\u2019-]*")
_LEAST_WORDS = 3


@dataclass(slots=True)
class Endings(RowFilter):
    """Drop rows with such an answer."""

    min_words: int
    answers: Answers

    def judge(self, row: Conversation) -> Verdict:
        """The first answer that was cut; plain text has no answer and may end anywhere."""
        for part in answers_of(row, self.answers) if row.kind != "text" else ():
            found = cut_off(part.text, min_words=self.min_words)
            if found is not None:
                why, start, end = found
                return Drop(detail=f"{part.where} {why}", mark=Mark(part.where, part.text, start, end))
        return None


def cut_off(text: str, *, min_words: int = 8) -> tuple[str, int, int] | None:
    """(what shows it, start and end of the place) of a text that was cut off; None if nothing shows it."""
    bare = text.rstrip()
    end = len(bare)
    if bare.count("```") % 2:
        return "opens a code block and does not close it", bare.rindex("```"), end
    if bare.endswith("```") or not bare:
        return None
    if bare[0] in "{[":
        ends = _json_ends(bare)
        if ends is not None:
            return None if ends else ("is JSON that ends too early", max(0, end - 20), end)
    start = bare.rfind("\n") + 1
    line = bare[start:]
    if _LINK.search(line) or line.lstrip().startswith(("|", "#", "$$", "\\")):
        return None
    words = _WORD.findall(line)
    dangling = _DANGLING.search(line)
    if dangling and len(line.split()) >= _LEAST_WORDS and not _is_code(line):
        return f"ends with `{dangling[0].strip()}`", start + dangling.start(), end
    core = line.rstrip(_CLOSERS)
    if not core or core[-1] in _END_MARKS or not core[-1].isalpha() or core != line or _is_code(line):
        return None
    sentence = _SENTENCE.split(line)[-1]
    last, count = words[-1] if words else "", len(_WORD.findall(sentence))
    open_end = last.lower() in OPEN_WORDS and len(words) >= _LEAST_WORDS
    open_end |= last.lower() in WEAK_WORDS and count >= min_words and not _LIST.match(line)
    if open_end and line.endswith(last):
        return f"ends with `{last}`", end - len(last), end
    if _LIST.match(line) or count < min_words:
        return None
    if "=" in sentence or not sentence[:1].isupper() or not _SENTENCE.search(bare):
        return None
    others = [other.rstrip() for other in bare[:start].splitlines() if len(_WORD.findall(other)) >= _LEAST_WORDS]
    if any(other.rstrip(_CLOSERS)[-1:] not in (*_END_MARKS, ":") and not _LIST.match(other) for other in others):
        return None
    return "ends without an end mark, unlike its other sentences", end - len(sentence), end


def _json_ends(text: str) -> bool | None:
    """Whether a JSON value ends before the text does; None if the text is no JSON at all."""
    if not re.match(r"[{\[]\s*(?:[\"{\[\]}]|-?\d|true|false|null)", text):
        return None
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        early = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        return False if early else None
    except RecursionError:
        return None
    return True


def _is_code(line: str) -> bool:
    return _CODE.search(line) is not None
