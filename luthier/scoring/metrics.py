"""Score one answer against one reference. Pure functions of two texts.

| metric       | 1 when                                                                  | also reported             |
|--------------|-------------------------------------------------------------------------|---------------------------|
| `exact`      | the texts are equal but for white space around them                     |                           |
| `contains`   | the answer contains the reference (white space around it aside)         |                           |
| `regex`      | the pattern's first group caught the same text on both sides            | `answered`                |
| `number`     | the last numbers are equal in value                                     | `answered`                |
| `json_exact` | both are the same JSON value, types included                            | `valid_json`, `field_f1`  |

A `pattern` first replaces both texts by what its first group caught; an answer it does not match is wrong.
(`loss`, the held-out loss, compares no texts: see `evaluate/loss.py`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.scoring.extract import PATTERN_SECONDS, PatternTimeoutError, first_group, last_number
from luthier.scoring.json_score import FieldCounts, count_fields, parse_json, same_json

__all__ = ["METRICS", "Score", "check_reference", "score_answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one answer did."""

    value: float
    """Main score, 0 or 1."""
    extracted: str | None
    """What was compared; None when nothing could be found in the answer."""
    secondary: Mapping[str, float] = field(default_factory=dict)
    fields: FieldCounts | None = None
    """Field counts of `json_exact`; summed over rows for the micro F1."""
    fault: str | None = None
    """Why a grader gave no score; the value is then 0."""


def score_answer(
    metric: str, answer: str, reference: str, *, pattern: Any = None, bare_reference: bool = False
) -> Score:
    """Score an answer.

    Args:
        metric: A key of `METRICS`.
        answer: Text of the model.
        reference: Right answer; `check_reference` must have accepted it.
        pattern: From `compile_pattern`, or None.
        bare_reference: A reference that the pattern does not match is taken as it stands.
    """
    if pattern is None:
        return METRICS[metric](answer, reference)
    expected = first_group(pattern, reference)
    if expected is None and bare_reference:
        expected = reference
    assert expected is not None, "check_reference was not asked"
    try:
        found = first_group(pattern, answer)
    except PatternTimeoutError:
        # Counted and shown: an answer that makes the pattern run without end is a wrong answer.
        missed = METRICS[metric](None, expected)
        return Score(
            value=0.0, extracted=None, secondary={**missed.secondary, "pattern_timeout": 1.0}, fields=missed.fields
        )
    return METRICS[metric](found, expected)


def check_reference(metric: str, reference: str, *, pattern: Any = None, bare_reference: bool = False) -> str | None:
    """What makes a reference unusable for a metric, in words; None when it is fine. Arguments as `score_answer`."""
    expected: str | None = reference
    if pattern is not None:
        try:
            expected = first_group(pattern, reference)
        except PatternTimeoutError:
            return f"the pattern takes longer than {PATTERN_SECONDS:g} s on the reference: it backtracks without end"
        if expected is None and bare_reference:
            expected = reference
        if expected is None:
            return "the pattern does not match the reference"
    assert expected is not None
    if metric == "contains" and not expected.strip():
        return "the reference is empty, and every answer contains that"
    if metric == "number" and last_number(expected) is None:
        return "there is no number in the reference"
    if metric == "json_exact":
        try:
            parse_json(expected)
        except ValueError as error:
            return f"the reference is not JSON: {error}"
    return None


def _exact(answer: str | None, reference: str) -> Score:
    extracted = None if answer is None else answer.strip()
    return Score(value=float(extracted == reference.strip()), extracted=extracted)


def _contains(answer: str | None, reference: str) -> Score:
    extracted = None if answer is None else answer.strip()
    return Score(value=float(extracted is not None and reference.strip() in extracted), extracted=extracted)


def _regex(answer: str | None, reference: str) -> Score:
    score = _exact(answer, reference)
    return Score(
        value=score.value, extracted=score.extracted, secondary={"answered": float(score.extracted is not None)}
    )


def _number(answer: str | None, reference: str) -> Score:
    found = None if answer is None else last_number(answer)
    expected = last_number(reference)
    right = found is not None and expected is not None and found[0] == expected[0]
    return Score(
        value=float(right),
        extracted=found[1] if found else None,
        secondary={"answered": float(found is not None)},
    )


def _json_exact(answer: str | None, reference: str) -> Score:
    expected = parse_json(reference)
    value: Any = ...
    extracted = None
    if answer is not None:
        extracted = answer.strip()
        try:
            value = parse_json(extracted)
        except ValueError:
            extracted = None
    fields = count_fields(value, expected)
    return Score(
        value=float(same_json(value, expected)),
        extracted=extracted,
        secondary={"valid_json": float(value is not ...), "field_f1": fields.f1 if value is not ... else 0.0},
        fields=fields,
    )


METRICS: Mapping[str, Callable[[str | None, str], Score]] = {
    "exact": _exact,
    "contains": _contains,
    "regex": _regex,
    "number": _number,
    "json_exact": _json_exact,
}
