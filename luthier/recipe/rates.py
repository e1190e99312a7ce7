"""The rule behind `learning_rate: auto`. Pure arithmetic.

full, freeze   2e-5 x sqrt(7e9 / parameters), between 1e-5 and 3e-4
lora, qlora    ten times that, between 1e-4 and 1e-3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.recipe.facts import FoundRate

__all__ = ["found_line", "rule_rate"]

_REFERENCE_RATE, _REFERENCE_PARAMETERS = 2e-5, 7e9
_FULL_RATES, _LORA_RATES = (1e-5, 3e-4), (1e-4, 1e-3)
_LORA_FACTOR = 10.0
_ADAPTERS = {"lora", "qlora"}
_SAME_STEP, _SAME_RATE = 1.25, 1.1


def rule_rate(method: str, parameters: int, tokens_per_step: int) -> tuple[float, str]:
    """Peak rate and its reason; two significant digits, for it is a rule of thumb."""
    low, high = _FULL_RATES
    full = min(max(_REFERENCE_RATE * math.sqrt(_REFERENCE_PARAMETERS / parameters), low), high)
    formula = f"2e-5 x sqrt(7e9 / {parameters:.3g} parameters) within {low:g} to {high:g}"
    if method not in _ADAPTERS:
        return _two_digits(full), f"{formula} for method {method}"
    low, high = _LORA_RATES
    rate = min(max(_LORA_FACTOR * full, low), high)
    reason = f"10 x the rate of full tuning ({formula}), within {low:g} to {high:g}, for method {method}"
    return _two_digits(rate), reason


def found_line(found: Sequence[FoundRate], tokens_per_step: int) -> str:
    """What to say beside the rule of rates that `luthier lr-find` found; empty if there are none for such steps.

    Steps count as alike within a quarter of their tokens, rates as equal within a tenth.
    """
    alike = [item for item in found if _within(item.tokens_per_step, tokens_per_step, _SAME_STEP)]
    if not alike:
        return ""
    latest = alike[-1]
    if all(_within(item.learning_rate, latest.learning_rate, _SAME_RATE) for item in alike):
        day = latest.found_at.partition("T")[0]
        return f"; lr-find found {latest.learning_rate:g} for this training on {day} (`lr-find --write` takes it)"
    rates = ", ".join(f"{rate:g}" for rate in sorted({item.learning_rate for item in alike}))
    return f"; lr-find found several rates for this training ({rates}), so none is suggested"


def _within(one: float, other: float, factor: float) -> bool:
    return max(one, other) <= factor * min(one, other) * (1.0 + 1e-9)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
