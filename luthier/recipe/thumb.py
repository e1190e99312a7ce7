"""Memory of a step by rules of thumb, where there is no plan. Pure arithmetic."""

from __future__ import annotations

import math

from luthier.recipe.facts import Facts
from luthier.recipe.schema import Recipe

__all__ = ["memory_estimate"]


def memory_estimate(recipe: Recipe, facts: Facts) -> float:
    """Bytes of one step without recomputation, within a factor of two; the plan has the exact figure.

    Weights: 4 or 2 bytes, 0.55 for nf4. Trained weights: 16 bytes with gradient, two Adam moments
    and fp32 masters (ZeRO, arXiv:1910.02054), of which 12 to 14 come on top of the weights; adapters
    are taken as 1.5% of the model, frozen tuning as 20%, Spectrum as its share. Activations: 34 bytes
    x hidden size x layers a token at 2 bytes a number (arXiv:2205.05198, without attention scores), where
    parameters = 12 x layers x hidden^2 and hidden = 128 x layers, the usual shape.
    """
    number_bytes = 4 if recipe.model.dtype == "float32" else 2
    weight_bytes = 0.55 if recipe.model.quantization == "nf4" else number_bytes
    method = recipe.method
    share = {"full": 1.0, "freeze": 0.2, "spectrum": method.top_percent / 100}.get(method.name, 0.015)
    parameters = facts.model_parameters
    hidden = math.cbrt(128 * parameters / 12)
    micro_tokens = float(recipe.train.per_device_train_batch_size) * facts.mean_tokens
    activations = 17 * number_bytes * parameters / (12 * hidden) * micro_tokens
    return parameters * (weight_bytes + share * (16 - number_bytes)) + activations
