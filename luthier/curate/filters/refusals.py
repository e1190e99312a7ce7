"""Answers that refuse, by how they begin (English).

A refusal is an optional apology, then one of `REFUSALS`, at the start of the answer. It must say what it will not do
(`I can't help`), so that `I can't believe it` and `I cannot stress this enough` are none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.curate.filters.base import Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, answers_of
from luthier.data.types import Conversation

__all__ = ["APOLOGY", "REFUSALS", "Refusals", "refusal"]

_DO = (
    r"(?:help|assist|provide|fulfil?l|comply|answer|create|generate|write|produce|support|engage|participate|"
    r"offer|give (?:you )?(?:any |that |this |such )?(?:advice|information|instructions)|share|discuss|"
    r"do (?:that|this)|complete|continue|process|respond|recommend|encourage|facilitate|access|browse|"
    r"open|view|see|watch|listen|perform|carry out|accommodate|satisfy|proceed|talk about|tell you|show you)\b"
)
_NOT = r"(?:can't|cant|can not|cannot|couldn't|won't|will not|must not|(?:am|'m) (?:not able|unable|not allowed) to)"

APOLOGY = (
    r"(?:(?:oh|ok(?:ay)?|hello|hi|well|hmm|unfortunately|regrettably)[,!.\s]+)?"
    r"(?:(?:i(?:'m| am) (?:(?:very|so|really|truly) )?(?:sorry|afraid)|sorry|my apologies|apologies|"
    r"i (?:sincerely )?apologi[sz]e)(?: for (?:the|any) (?:inconvenience|confusion))?"
    r"[,.!:;\s]*(?:but |that |however,? )?)?"
    r"(?:(?:unfortunately|regrettably|as an? (?:[\w-]+ ){0,4}(?:ai|language model|assistant|chatbot)"
    r"(?: (?:language )?model)?(?: (?:created|developed|trained) by \w+)?)[,\s]+(?:but )?)?"
)
REFUSALS = (
    rf"i (?:simply |just )?{_NOT} (?:in good conscience |ethically |legally |directly |currently |really )?{_DO}",
    rf"i(?:'m| am) (?:not able|unable|not allowed|not permitted|not comfortable|not willing|not going|"
    rf"not programmed|not designed|not authori[sz]ed) (?:to |with )?{_DO}",
    r"i(?:'m| am) (?:not (?:comfortable|willing|programmed|designed)|unable) (?:to |with )(?:\w+ing|do)\b",
    r"i (?:must|have to|need to|will have to) (?:respectfully |politely )?(?:decline|refuse)\b",
    r"i (?:respectfully |politely )?(?:decline|refuse) to\b",
    r"i (?:do not|don't) (?:have|possess) (?:access|the ability|the capability|the capacity|personal|real[- ]time|"
    r"enough information|sufficient information|any information|the information|opinions|feelings)\b",
    r"i (?:do not|don't) feel comfortable\b",
    r"(?:it is|it's|it would be|that is|that's) (?:not (?:possible|appropriate|ethical|legal|safe)|inappropriate|"
    rf"unethical|illegal|against my \w+) (?:for me )?to {_DO}",
    r"(?:this|that|your) (?:request|question|prompt) (?:is (?:inappropriate|not appropriate|against)|violates|"
    r"goes against)\b",
    r"i(?:'m| am) (?:just |only )?an? (?:[\w-]+ ){0,3}(?:ai|language model)(?: (?:language )?model)?"
    r"(?:,| and)? (?:so )?(?:i )?(?:do not|don't|can't|cannot|am not|have no|lack)\b",
)
"""Tried at the start of the answer, behind `APOLOGY`; case does not count, a curly apostrophe is a straight one."""


def refusal(text: str, patterns: Sequence[re.Pattern[str]] | None = None) -> re.Match[str] | None:
    """The refusal at the start of a text."""
    plain = text[:_LOOKED_AT].replace("\u2019", "'")
    start = len(plain) - len(plain.lstrip(" \t\r\n\"'*_>\u201c"))
    return next((found for pattern in patterns or (_PATTERN,) if (found := pattern.match(plain, start))), None)


_PATTERN = re.compile(f"{APOLOGY}(?:{'|'.join(REFUSALS)})", re.IGNORECASE)
_LOOKED_AT = 1_000


@dataclass(slots=True)
class Refusals(RowFilter):
    """Drop rows with such an answer."""

    patterns: Sequence[re.Pattern[str]]
    answers: Answers

    @classmethod
    def of(cls, further: Sequence[str], answers: Answers) -> Refusals:
        """With patterns of the user's own behind ours."""
        return cls([_PATTERN, *(re.compile(text, re.IGNORECASE) for text in further)], answers)

    def judge(self, row: Conversation) -> Verdict:
        """The first answer that refuses."""
        for part in answers_of(row, self.answers) if row.kind != "text" else ():
            found = refusal(part.text, self.patterns)
            if found is not None:
                words = " ".join(found[0].split())
                return Drop(
                    detail=f"{part.where} refuses: {words[:100]}", mark=Mark(part.where, part.text, *found.span())
                )
        return None
