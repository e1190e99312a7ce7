"""The rule behind `learning_rate: auto`. Pure arithmetic, for AdamW.

    full, freeze, ...   2e-5 x sqrt(7e9 / parameters) x sqrt(tokens a step / 16,384), within 1e-5 to 3e-4
    lora, qlora         ten times that, so within 1e-4 to 3e-3

The anchor is Stanford Alpaca's 2e-5 for all weights of 7B parameters in steps of 128 rows, about 16,384 tokens.

Size: a rule of thumb that fits both 2e-5 for 7B and what SmolLM2-135M takes (docs/learning-rate.md). "LoRA Without
Regret" (Thinking Machines, 2025) fits a power of the hidden size that differs by family (-0.78 Llama, -0.08 Qwen).

Tokens a step: with Adam the rate grows with the square root of the batch (Malladi et al., arXiv:2205.10287) up to
the noise scale of the gradient and not beyond (Li et al., arXiv:2405.14578), so the factor ends at 2. Below the
anchor it stays 1: in steps of 400 and 1,000 tokens the square root would have been far too low.

LoRA: about ten times the rate of full tuning over 14 models ("LoRA Without Regret"; Biderman et al.,
arXiv:2405.09673, found the same order). The rank changes little, as long as lora_alpha is kept at a multiple of r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.recipe.facts import FoundRate
from luthier.recipe.objective import base_rates
from luthier.recipe.schema import ObjectiveSection

__all__ = ["found_line", "multiplied", "rule_rate"]

_REFERENCE_RATE, _REFERENCE_PARAMETERS, _REFERENCE_TOKENS = 2e-5, 7e9, 16_384
_LIMITS = (1e-5, 3e-4)
_MOST_FOR_TOKENS = 2.0
_LORA_FACTOR = 10
_ADAPTERS = {"lora", "qlora"}
_SAME_STEP, _SAME_RATE = 1.25, 1.1


def rule_rate(
    method: str, parameters: int, tokens_per_step: int, objective: ObjectiveSection | None = None
) -> tuple[float, str]:
    """Peak rate and its reason; two significant digits, for it is a rule of thumb.

    Args:
        method: `method.name`; whatever is no adapter counts as full tuning.
        parameters: Of the whole model.
        tokens_per_step: Of an optimizer step over all devices.
        objective: One over preferences has a lower start of its own, whatever the tokens of a step; None: SFT.
    """
    own = None if objective is None else base_rates(objective)
    rate, (low, high) = own or (_REFERENCE_RATE, _LIMITS)
    for_tokens = 1.0 if own else min(max(math.sqrt(tokens_per_step / _REFERENCE_TOKENS), 1.0), _MOST_FOR_TOKENS)
    full = min(max(rate * math.sqrt(_REFERENCE_PARAMETERS / parameters) * for_tokens, low), high)
    formula = f"{rate:g} x sqrt(7e9 / {parameters:.3g} parameters)"
    if for_tokens > 1.0:
        formula += f" x {for_tokens:.2g} for {tokens_per_step:,} tokens a step"
    formula += f" within {low:g} to {high:g}"
    if own and objective is not None:
        formula += f" for objective {objective.name}"
    if method not in _ADAPTERS:
        return _two_digits(full), f"{formula}, for method {method}"
    reason = f"{_LORA_FACTOR} x the rate of full tuning ({formula}), for method {method}"
    return _two_digits(_LORA_FACTOR * full), reason


def multiplied(rate: float, reason: str, factor: float) -> tuple[float, str]:
    """The rate of the rule times `train.learning_rate_multiplier`, and its reason."""
    if factor == 1.0:
        return rate, reason
    return float(f"{factor * rate:.6g}"), f"{factor:g} (learning_rate_multiplier) x {rate:g}: {reason}"


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
