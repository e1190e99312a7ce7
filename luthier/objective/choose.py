"""The objective that a resolved recipe names."""

from __future__ import annotations

from luthier.objective.base import Objective
from luthier.objective.dpo import Dpo
from luthier.objective.kto import Kto
from luthier.objective.reference_free import Orpo, Simpo
from luthier.objective.reward import Reward
from luthier.recipe.schema import ObjectiveSection
from luthier.runtime.errors import RecipeError

__all__ = ["make_objective"]


def make_objective(section: ObjectiveSection) -> Objective | None:
    """The objective over preferences; None for SFT, whose loss is the head's own.

    Raises:
        RecipeError: a value is still `auto`.
    """
    if section.name == "sft":
        return None
    if section.name == "reward":
        return Reward(center_rewards_coefficient=section.center_rewards_coefficient)
    beta = _number(section, "beta")
    if section.name == "orpo":
        return Orpo(beta=beta)
    if section.name == "kto":
        return Kto(
            beta=beta, desirable_weight=section.desirable_weight, undesirable_weight=section.undesirable_weight
        )  # fmt: skip
    if section.name == "simpo":
        return Simpo(
            beta=beta, simpo_gamma=_number(section, "simpo_gamma"), label_smoothing=section.label_smoothing,
            rpo_alpha=section.rpo_alpha,
        )  # fmt: skip
    return Dpo(
        beta=beta, loss_type=section.loss_type, label_smoothing=section.label_smoothing, rpo_alpha=section.rpo_alpha
    )


def _number(section: ObjectiveSection, key: str) -> float:
    value = getattr(section, key)
    if not isinstance(value, int | float):
        raise RecipeError(code="T470", message=f"the recipe was not resolved: `objective.{key}` is still `{value}`")
    return float(value)
