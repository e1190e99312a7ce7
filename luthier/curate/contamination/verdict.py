"""What the evidence says of a pair: thresholds, verdicts, and how sure they are.

copy      the training text has the evaluation prompt's n-grams or pieces of characters
reworded  words, numbers and answer agree, or embeddings and numbers
answer    the training text has the evaluation row's answer
variant   the prompt with other numbers and another result: one's own judgement whether that is contamination
"""

from __future__ import annotations

from typing import Literal

from luthier.curate.contamination.evidence import Evidence
from luthier.curate.contamination.targets import Side
from luthier.recipe.decontaminate_schema import DecontaminateSection

__all__ = ["VERDICTS", "Verdict", "certainty", "kinds_of", "meaning", "scores_of", "verdict_of", "worth_embedding"]

Verdict = Literal["copy", "reworded", "answer", "variant"]
VERDICTS: tuple[Verdict, ...] = ("copy", "reworded", "answer", "variant")

_DOUBTFUL = 0.2
"""Least agreement without embeddings for which embeddings are made."""
_WITHOUT_NUMBERS = 0.8
"""Texts without numbers: 0.73 asks for a cosine of 0.91. No pair of clean GSM8K rows reached 0.89."""


def scores_of(side: Side, evidence: Evidence) -> dict[str, float]:
    """What is compared with the thresholds, under their names."""
    if side == "answer":
        return {"ngram": evidence.ngram, "answer": 0.5 * evidence.words + 0.5 * evidence.numbers}
    found = {"ngram": evidence.ngram, "characters": evidence.characters, "reworded": evidence.reworded}
    if evidence.embedding is not None:
        found["embedding"] = meaning(evidence.embedding, evidence.numbers, evidence.has_numbers)
    return found


def meaning(cosine: float, numbers: float, has_numbers: bool) -> float:
    """Embeddings know little of numbers, so those count by themselves: a third."""
    return (2 * cosine + numbers) / 3 if has_numbers else _WITHOUT_NUMBERS * cosine


def kinds_of(side: Side, evidence: Evidence, settings: DecontaminateSection) -> tuple[str, ...]:
    """Names of the evidence that reaches its threshold."""
    return tuple(name for name, score in scores_of(side, evidence).items() if score >= getattr(settings, name))


def verdict_of(side: Side, evidence: Evidence, settings: DecontaminateSection) -> Verdict | None:
    """None: no contamination."""
    kinds = kinds_of(side, evidence, settings)
    if not kinds:
        return None
    if side == "answer":
        return "answer"
    if evidence.conflict and not evidence.same_result:
        return "variant"
    return "copy" if {"ngram", "characters"} & set(kinds) else "reworded"


def certainty(side: Side, evidence: Evidence, settings: DecontaminateSection) -> float:
    """How far the strongest evidence is above its threshold: 0 just there, 1 as far as it goes."""
    above = []
    for name, score in scores_of(side, evidence).items():
        threshold = float(getattr(settings, name))
        if score >= threshold:
            above.append((score - threshold) / (1 - threshold) if threshold < 1 else 1.0)
    return max(above, default=0.0)


def worth_embedding(side: Side, evidence: Evidence, settings: DecontaminateSection) -> bool:
    """Whether a pair is doubtful: near a rewording, and not decided."""
    return side == "prompt" and evidence.reworded >= _DOUBTFUL and not kinds_of(side, evidence, settings)
