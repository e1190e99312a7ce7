"""The number in a judge's answer."""

from __future__ import annotations

import math

from luthier.scoring.answer_json import answer_json

__all__ = ["read_score"]

_SHOWN = 120


def read_score(text: str, *, low: float, high: float) -> float | str:
    """The score in a judge's answer, or what is wrong with it.

    Taken are a JSON object with a finite number `score` within the bounds, alone or in a code fence. Nothing is
    searched for in prose, and nothing is clipped.
    """
    bare = text.strip()
    try:
        value = answer_json(bare)
    except ValueError:
        return f"not JSON: {bare[:_SHOWN]!r}"
    score = value.get("score") if isinstance(value, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return f"no number under `score`: {bare[:_SHOWN]!r}"
    if not low <= score <= high:
        return f"score {score:g} is not within {low:g} to {high:g}"
    return float(score)
