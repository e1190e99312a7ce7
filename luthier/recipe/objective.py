"""What a recipe's objective means: which values it has, which rules they follow, which rate suits it. No torch.

beta           dpo 0.1 (arXiv:2305.18290 uses 0.1; TRL's default, as for kto and orpo); simpo 2.0 (arXiv:2405.14734)
simpo_gamma    beta / 2, the ratio that the paper names as a start
learning rate  preferences, 7B: 5e-7 in full, 5e-6 with adapters (Zephyr, arXiv:2310.16944, and the Alignment
               Handbook's recipes); orpo, which holds the SFT loss too: 8e-6 and 8e-5 (arXiv:2403.07691);
               reward: 1e-5 and 1e-4 (TRL's reward_modeling.py); with the size as for SFT
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.recipe.objective_kind import row_kind
from luthier.recipe.online import weights_facts
from luthier.recipe.online_rules import grpo_values
from luthier.recipe.positions import Locate
from luthier.recipe.schema import ObjectiveSection
from luthier.recipe.unused import unused_in_objective
from luthier.runtime.errors import Problem

__all__ = ["base_rates", "default_values", "is_preference", "objective_rules", "objective_values"]

_BETA = {"dpo": 0.1, "orpo": 0.1, "kto": 0.1, "simpo": 2.0}
_RATES = {"dpo": 5e-7, "kto": 5e-7, "simpo": 5e-7, "orpo": 8e-6, "reward": 1e-5}
_LIMITS = 20.0


def is_preference(objective: ObjectiveSection) -> bool:
    """Whether rows are pairs or rated answers."""
    return row_kind(objective.name) in ("pairs", "rated")


def default_values(objective: ObjectiveSection) -> Iterator[tuple[str, Any, str]]:
    """(key, value, reason) for each key that may be `auto` and that this objective reads."""
    if objective.name in _BETA:
        beta = _BETA[objective.name]
        yield "beta", beta, f"the usual start for {objective.name}"
        if objective.name == "simpo":
            scale = objective.beta if isinstance(objective.beta, int | float) else beta
            yield "simpo_gamma", 0.5 * scale, f"half of beta {scale:g}"


def objective_values(objective: ObjectiveSection, *, of_weights: bool = False) -> dict[str, Any]:
    """The keys that have an effect, as JSON.

    Args:
        objective: of a recipe.
        of_weights: what trained weights depend on: of `grpo` without the pace of a judge, and with the code of the
            user's rewards. The same as without it for the others.
    """
    unused = unused_in_objective(objective)
    value = objective.model_dump(mode="json", exclude={"grpo"})
    found = {key: item for key, item in value.items() if key not in unused and item is not None}
    if objective.name == "grpo":
        found["grpo"] = weights_facts(objective.grpo) if of_weights else grpo_values(objective.grpo)
    return found


def base_rates(objective: ObjectiveSection) -> tuple[float, tuple[float, float]] | None:
    """(rate of full tuning of 7 billion parameters, lowest and highest for any size); None: that of SFT."""
    rate = _RATES.get(objective.name)
    return None if rate is None else (rate, (rate, _LIMITS * rate))


def objective_rules(objective: ObjectiveSection, locate: Locate) -> Iterator[Problem]:
    """Values that mean nothing beside others, besides keys that are not read at all."""
    if is_preference(objective) and objective.label_smoothing >= 0.5:
        message = f"`objective.label_smoothing` is a probability that labels are wrong; got {objective.label_smoothing}"
        yield locate("objective.label_smoothing").problem("C103", message, hint="write a number below 0.5")
    if objective.name == "dpo" and objective.loss_type == "robust" and not objective.label_smoothing:
        message = "loss_type robust without `label_smoothing` is loss_type sigmoid"
        yield locate("objective.loss_type").problem("C110", message, hint="add label_smoothing: 0.1")
    for key in ("beta", "simpo_gamma"):
        if getattr(objective, key) is None and key not in unused_in_objective(objective):
            message = f"objective {objective.name} needs `{key}`"
            yield locate(f"objective.{key}").problem("C110", message, hint="write auto, or a number")
