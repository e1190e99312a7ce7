"""What an objective adds to a step, and what comes before the first one.

    sft                  logits once, their gradient in the same pass
    dpo, orpo, simpo     log-probabilities first, and logits again for the gradient (`fast/log_probs.py`): one product
                         and two passes over the logits more
    kto                  the same, and a pass without gradients over as many tokens: its reference point
    reward               a head of one output: nothing

dpo and kto run all training rows once before the first step, without gradients; kto each row once more an epoch, with
the answer of another row. Held-out rows are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ObjectiveWork", "passes_before", "work_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveWork:
    """Work of a step that depends on the objective."""

    head_products: float = 2.0
    """Products of the size of the head, besides its weight gradient."""
    logits_passes: float = 3.0
    """Times the logits go through memory."""
    forward_passes: float = 0.0
    """Whole passes without gradients, beside the training pass."""


def work_of(objective: str) -> ObjectiveWork:
    """Of `objective.name`."""
    if objective == "sft":
        return ObjectiveWork()
    if objective == "reward":
        return ObjectiveWork(head_products=0.0, logits_passes=0.0)
    return ObjectiveWork(head_products=3.0, logits_passes=5.0, forward_passes=1.0 if objective == "kto" else 0.0)


def passes_before(objective: str, epochs: float) -> float:
    """Passes over the training rows without gradients before the first step."""
    return {"dpo": 1.0, "kto": 1.0 + epochs}.get(objective, 0.0)
