"""Derived values of online RL, with their reasons; and what a trained policy depends on. No torch.

learning rate  full: 1e-6 x sqrt(7e9 / parameters), between 1e-6 and 1e-5 (DeepSeekMath, arXiv:2402.03300, takes
               1e-6 at 7B; TRL's default is 1e-6); adapters: ten times that ("LoRA Without Regret", Thinking
               Machines 2025, finds the same factor for policy gradients)
a step         8 prompts, each with num_generations completions
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from luthier.recipe.online_rules import grpo_values, split_python
from luthier.recipe.online_schema import GrpoSection
from luthier.recipe.paths import expand
from luthier.recipe.schema import TrainSection
from luthier.recipe.steps import MICRO_BATCH_TOKENS
from luthier.runtime.hashing import hash_file

__all__ = ["Completions", "choose_completions", "online_rate", "online_steps", "weights_facts"]

PROMPTS_PER_STEP = 8
_REFERENCE_RATE, _REFERENCE_PARAMETERS = 1e-6, 7e9
_HIGHEST_RATE, _LORA_FACTOR = 1e-5, 10.0
# What changes the pace of a judge, not its scores.
_PACE = ("concurrency", "timeout_seconds", "max_retries", "input_price", "output_price", "budget_usd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """How the completions of a step are split."""

    per_device_train_batch_size: int
    """Completions of a micro-batch."""
    gradient_accumulation_steps: int
    prompts: int
    """Prompts of a step."""
    reason: str

    @property
    def count(self) -> int:
        """Completions of a step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def online_rate(method: str, parameters: int) -> tuple[float, str]:
    """Peak learning rate and its reason; a rule of thumb, to two digits."""
    full = min(max(_REFERENCE_RATE * math.sqrt(_REFERENCE_PARAMETERS / parameters), _REFERENCE_RATE), _HIGHEST_RATE)
    formula = f"1e-6 x sqrt(7e9 / {parameters:.3g} parameters) within 1e-06 to 1e-05 for objective grpo"
    if method not in {"lora", "qlora"}:
        return float(f"{full:.2g}"), f"{formula}, method {method}"
    return float(f"{_LORA_FACTOR * full:.2g}"), f"10 x the rate of full tuning ({formula}), for method {method}"


def choose_completions(
    train: TrainSection, *, num_generations: int, prompts: int, mean_tokens: float, device_type: str
) -> Completions:
    """Split a step into micro-batches; a number that is given stays.

    Args:
        train: the two batch keys may be `auto`.
        num_generations: completions of a prompt.
        prompts: in the data.
        mean_tokens: of a prompt with the longest completion.
        device_type: decides how much a micro-batch holds.
    """
    batch, steps = train.per_device_train_batch_size, train.gradient_accumulation_steps
    wanted = min(PROMPTS_PER_STEP, prompts) * num_generations
    why = f"{wanted // num_generations} prompts a step x num_generations {num_generations}"
    if isinstance(batch, int):
        micro = batch
        accumulate = steps if isinstance(steps, int) else _fill(wanted, micro, num_generations)
    elif isinstance(steps, int):
        micro, accumulate = _fill(wanted, steps, num_generations), steps
    else:
        budget = MICRO_BATCH_TOKENS.get(device_type, MICRO_BATCH_TOKENS["cpu"])
        fitting = [n for n in range(1, wanted + 1) if wanted % n == 0 and n * mean_tokens <= budget]
        micro = max(fitting, default=1)
        accumulate = wanted // micro
    return Completions(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate,
        prompts=max(1, micro * accumulate // num_generations), reason=why,
    )  # fmt: skip


def _fill(wanted: int, given: int, num_generations: int) -> int:
    """The number whose product with `given` is the multiple of `num_generations` nearest to `wanted`."""
    unit = num_generations // math.gcd(given, num_generations)
    return unit * max(1, round(wanted / (given * unit)))


def online_steps(
    prompts: int, prompts_per_step: int, epochs: float, max_steps: int | None, *, num_iterations: int = 1
) -> int:
    """Optimizer steps: num_iterations x ceil(epochs x prompts / prompts_per_step), or `max_steps`.

    Steps run across the end of an epoch, since a step always has as many prompts; each prompt is used once before any
    is used twice.
    """
    if max_steps is not None:
        return max_steps
    return num_iterations * math.ceil(Fraction(repr(float(epochs))) * prompts / prompts_per_step)


def weights_facts(grpo: GrpoSection) -> dict[str, Any]:
    """What of `objective.grpo` the trained weights depend on, the code of the user's rewards included."""
    value = grpo_values(grpo)
    for key in _PACE:
        value.get("judge", {}).pop(key, None)
    for entry in value["rewards"]:
        if entry["python"] is not None:
            file = Path(expand(split_python(entry["python"])[0]))
            entry["code"] = hash_file(file) if file.is_file() else None
    return value
