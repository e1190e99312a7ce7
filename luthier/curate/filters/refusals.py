"""Answers that refuse, by how they begin (English).

A refusal is an optional apology, then one of `REFUSALS`, at the start of the answer. It must say what it will not do
(`I can't help`), so that `I can't believe it` and `I cannot stress this enough` are none; behind an apology any verb
will do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.curate.filters.base import Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, answers_of
from luthier.data.types import Conversation

__all__ = ["AFTER_AN_APOLOGY", "APOLOGY", "REFUSALS", "Refusals", "refusal"]

_DO = (
    r"(?:help|assist|be of (?:help|assistance)|provide|fulfil?l|comply|answer|create|generate|write|produce|support|"
    r"engage|participate|offer|give (?:you )?(?:\w+ )?(?:advice|information|instructions|opinions?)|share|discuss|"
    r"do (?:that|this)|complete|continue|process|respond|recommend|encourage|facilitate|access|browse|condone|predict|"
    r"diagnose|determine|tell|translate|hear|send|look (?:that|this|it) up|verify|confirm|open|view|see (?:images|that|"
    r"your|the (?:image|picture|file|attachment))|watch|listen|perform|carry out|accommodate|satisfy|proceed|"
    r"talk about|show you)\b"
)
_NOT = r"(?:can't|cant|can not|cannot|couldn't|won't|will not|must not|(?:am|'m) (?:not able|unable|not allowed) to)"
_SORRY = (
    r"(?:(?:i(?:'m| am) (?:(?:very|so|really|truly) )?(?:sorry|afraid)|sorry|my apologies|apologies|"
    r"i (?:sincerely )?apologi[sz]e)(?: for (?:the|any) (?:inconvenience|confusion))?"
    r"(?: (?:that|to hear that) [^.!?\n]{1,60}?)?[,.!:;\s]*(?:but |that |however,? )?)"
)
_ROLE = (
    r"(?:(?:unfortunately|regrettably|as an? (?:[\w-]+ ){0,4}(?:ai|language model|assistant|chatbot)"
    r"(?: (?:language )?model)?(?: (?:created|developed|trained) by (?:\w+|an? \w+))?)[,\s]+(?:but )?)"
)

APOLOGY = (
    r"(?:(?:oh|ok(?:ay)?|hello|hi|well|hmm|unfortunately|regrettably)[,!.\s]+)?"
    rf"{_SORRY}?(?:no, )?{_ROLE}?"
)
AFTER_AN_APOLOGY = (
    rf"i (?:simply |just )?{_NOT}",
    r"i (?:do not|don't) (?:have|feel|possess|know how)\b",
    r"i(?:'m| am) (?:not (?:able|allowed|permitted|qualified|comfortable|in a position)|unable)\b",
    r"i have no (?:way|access|ability|means)\b",
    r"(?:there's|there is) nothing (?:that )?i can\b",
    r"(?:it's|it is|that's|that is|this is) (?:not (?:possible|appropriate|ethical|legal|safe|something)|outside|"
    r"beyond|against|inappropriate)\b",
)
"""What also refuses behind `I'm sorry, but`, `Unfortunately,`, `As an AI,`: there any verb will do."""
REFUSALS = (
    rf"i (?:simply |just )?{_NOT} (?:in good conscience |ethically |legally |directly |currently |really )?{_DO}",
    rf"i(?:'m| am) (?:not able|unable|not allowed|not permitted|not comfortable|not willing|not going|"
    rf"not programmed|not designed|not authori[sz]ed) (?:to |with )?{_DO}",
    r"i(?:'m| am) (?:not (?:comfortable|willing|programmed|designed)|unable) (?:to |with )?(?:\w+ing|do)\b",
    rf"i (?:won't|will not) be able to {_DO}",
    rf"i regret (?:that )?(?:i(?: am|'m) )?(?:unable|not able|to say that i cannot|not being able)(?: to)? {_DO}",
    r"(?:that|this|it) is (?:not something|nothing) (?:that )?i can\b",
    r"i(?:'m| am) not qualified to\b",
    r"i have no (?:way of|access to)\b",
    r"i (?:must|have to|need to|will have to) (?:respectfully |politely )?(?:decline|refuse)\b",
    r"i (?:respectfully |politely )?(?:decline|refuse) to\b",
    r"i (?:do not|don't) (?:have|possess) (?:access|the ability|the capability|the capacity|personal|real[- ]time|"
    r"enough information|sufficient information|any information|the information|opinions|feelings)\b",
    r"i (?:do not|don't) feel comfortable\b",
    r"(?:it is|it's|it would be|that is|that's) (?:not (?:possible|appropriate|ethical|legal|safe)|inappropriate|"
    rf"unethical|illegal|against my (?:\w+ )?\w+) (?:for me )?to {_DO}",
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


_BEHIND = rf"(?:{_SORRY}{_ROLE}?|{_SORRY}?{_ROLE})"
_PATTERN = re.compile(f"{APOLOGY}(?:{'|'.join(REFUSALS)})|{_BEHIND}(?:{'|'.join(AFTER_AN_APOLOGY)})", re.IGNORECASE)
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
