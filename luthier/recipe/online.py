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
from luthier.recipe.schema import Recipe, TrainSection
from luthier.recipe.steps import MICRO_BATCH_TOKENS
from luthier.runtime.errors import RecipeError
from luthier.runtime.hashing import hash_file

__all__ = [
    "Completions", "choose_completions", "online_rate", "online_steps", "require_processes", "require_whole_groups",
    "weights_facts",
]  # fmt: skip

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
    processes: int
    prompts: int
    """Prompts of a step, of all processes."""
    reason: str

    @property
    def count(self) -> int:
        """Completions of a step, of all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.processes


def online_rate(method: str, parameters: int) -> tuple[float, str]:
    """Peak learning rate and its reason; a rule of thumb, to two digits."""
    full = min(max(_REFERENCE_RATE * math.sqrt(_REFERENCE_PARAMETERS / parameters), _REFERENCE_RATE), _HIGHEST_RATE)
    formula = f"1e-6 x sqrt(7e9 / {parameters:.3g} parameters) within 1e-06 to 1e-05 for objective grpo"
    if method not in {"lora", "qlora"}:
        return float(f"{full:.2g}"), f"{formula}, method {method}"
    return float(f"{_LORA_FACTOR * full:.2g}"), f"10 x the rate of full tuning ({formula}), for method {method}"


def choose_completions(
    train: TrainSection, *, num_generations: int, prompts: int, mean_tokens: float, device_type: str, processes: int = 1
) -> Completions:
    """Split a step into micro-batches of each process; a number that is given stays.

    Left open, a step has the completions that it has in one process, or the next number that can be divided.

    Args:
        train: the two batch keys may be `auto`.
        num_generations: completions of a prompt.
        prompts: in the data.
        mean_tokens: of a prompt with the longest completion.
        device_type: decides how much a micro-batch holds.
        processes: that share a step.

    Raises:
        RecipeError: both numbers are given, and a step would tear a group apart.
    """
    require_whole_groups(train, num_generations=num_generations, processes=processes)
    batch, steps = train.per_device_train_batch_size, train.gradient_accumulation_steps
    wanted = min(PROMPTS_PER_STEP, prompts) * num_generations
    if isinstance(batch, int):
        micro = batch
        accumulate = steps if isinstance(steps, int) else _fill(wanted, micro * processes, num_generations)
    elif isinstance(steps, int):
        micro, accumulate = _fill(wanted, steps * processes, num_generations), steps
    else:
        budget = MICRO_BATCH_TOKENS.get(device_type, MICRO_BATCH_TOKENS["cpu"])
        mine = _fill(wanted, processes, num_generations)
        fitting = [n for n in range(1, mine + 1) if mine % n == 0 and n * mean_tokens <= budget]
        micro = max(fitting, default=1)
        accumulate = mine // micro
    meant = micro * accumulate * processes // num_generations
    why = f"{meant} prompts a step x num_generations {num_generations}"
    return Completions(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate, processes=processes, prompts=meant,
        reason=why + (f", of {processes} processes" if processes > 1 else ""),
    )  # fmt: skip


def require_whole_groups(train: TrainSection, *, num_generations: int, processes: int) -> None:
    """Return if the completions of a step, over all processes, are whole groups; an open number will make them so.

    Raises:
        RecipeError: they are not; with the smallest number that makes them so.
    """
    batch, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if not isinstance(batch, int) or not isinstance(accumulate, int):
        return
    count = batch * accumulate * processes
    if count % num_generations == 0:
        return
    unit = num_generations // math.gcd(batch * processes, num_generations)
    several = f" x {processes} processes" if processes > 1 else ""
    raise RecipeError(
        code="L320",
        message=f"a step has {batch} x {accumulate}{several} = {count} completions, which is no multiple of "
        f"num_generations ({num_generations}): a group would be torn apart",
        hint=f"train.gradient_accumulation_steps: {unit * -(-accumulate // unit)} makes it one",
    )


def require_processes(recipe: Recipe, processes: int, *, unshared: bool = False) -> None:
    """What online RL on so many processes needs and what it does not do; before anything is read.

    Args:
        recipe: of any objective.
        processes: of the run.
        unshared: its machines do not see one run folder.

    Raises:
        RecipeError: the first of these that is not so.
    """
    if recipe.objective.name != "grpo":
        return
    grpo = recipe.objective.grpo
    require_whole_groups(recipe.train, num_generations=grpo.num_generations, processes=processes)
    if processes > 1 and grpo.use_vllm:
        raise RecipeError(
            code="L322", message=f"`objective.grpo.use_vllm` on {processes} processes was never run",
            hint="use_vllm: false (transformers samples, each process its own part), or one process",
        )  # fmt: skip
    if processes > 1 and unshared:
        raise RecipeError(
            code="L321", message="online RL on several machines needs one run folder that all of them see",
            hint="put `output_dir` on a file system that all machines share",
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
