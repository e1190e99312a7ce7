"""What is counted beside the loss, by objective: names of the sums, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.objective.base import Objective

__all__ = ["names_of", "report", "say"]


def names_of(objective: Objective | None) -> tuple[str, ...]:
    """Names of the sums, in a fixed order."""
    return ("correct",) if objective is None else objective.sums


def report(objective: Objective | None, sums: Mapping[str, float], *, trained_tokens: int) -> dict[str, float]:
    """Metrics of a step, of many, or of a validation, from their sums."""
    if objective is None:
        return {"token_accuracy": sums.get("correct", 0.0) / max(trained_tokens, 1)}
    return objective.report(sums)


def say(found: Mapping[str, float]) -> str:
    """The most telling of them, for a progress line; empty for SFT, whose loss says it all."""
    parts = [("margin", found.get("rewards/margins"), "+.3f"), ("accuracy", found.get("rewards/accuracies"), ".0%")]
    return "".join(f"  {name} {value:{form}}" for name, value, form in parts if value is not None)
