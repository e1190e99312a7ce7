"""Rewards that compare a completion with the reference, or look at its form. Pure, as in evaluation.

| name          | 1 when                                                                       |
|---------------|------------------------------------------------------------------------------|
| `exact_match` | the texts are equal but for white space around them                          |
| `number`      | the last numbers are equal in value (GSM8K)                                  |
| `json_exact`  | both are the same JSON value, types included                                 |
| `json_valid`  | the whole completion is one JSON value                                       |
| `regex`       | `pattern` is found in the completion                                         |

Otherwise 0. For `exact_match` and `number`, `pattern` first replaces the completion by what its first group caught,
and the reference too where it matches. A completion that makes a pattern run without end is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import regex

from luthier.online.rewards.base import Completions, Value
from luthier.scoring.extract import PATTERN_SECONDS, compile_pattern
from luthier.scoring.json_score import parse_json
from luthier.scoring.metrics import check_reference, score_answer

__all__ = ["FormReward", "MatchReward"]

_METRICS = {"exact_match": "exact", "number": "number", "json_exact": "json_exact"}


@dataclass(frozen=True, slots=True)
class MatchReward:
    """`exact_match`, `number` or `json_exact`: needs a reference."""

    label: str
    weight: float
    name: str
    pattern: str | None = None

    def unusable(self, reference: str | None) -> str | None:
        """No reference, or one that this comparison cannot use."""
        if reference is None:
            return f"reward `{self.label}` needs a reference, and the row has none"
        fault = check_reference(_METRICS[self.name], reference, pattern=self._compiled(), bare_reference=True)
        return f"reward `{self.label}`: {fault}" if fault else None

    def score(self, batch: Completions) -> list[Value]:
        """1 or 0 for each completion."""
        compiled = self._compiled()
        return [
            score_answer(_METRICS[self.name], text, reference or "", pattern=compiled, bare_reference=True).value
            for text, reference in zip(batch.texts, batch.references, strict=True)
        ]

    def _compiled(self) -> Any:
        return compile_pattern(self.pattern) if self.pattern is not None else None


@dataclass(frozen=True, slots=True)
class FormReward:
    """`json_valid` or `regex`: looks at the completion alone."""

    label: str
    weight: float
    name: str
    pattern: str | None = None

    def unusable(self, reference: str | None) -> str | None:
        """It needs none."""
        return None

    def score(self, batch: Completions) -> list[Value]:
        """1 or 0 for each completion."""
        holds = _is_json if self.name == "json_valid" else self._is_found
        return [float(holds(text)) for text in batch.texts]

    def _is_found(self, text: str) -> bool:
        try:
            return regex.search(self.pattern or "", text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError:
            return False


def _is_json(text: str) -> bool:
    try:
        parse_json(text.strip())
    except ValueError:
        return False
    return True
