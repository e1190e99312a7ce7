"""Charts of the training, and the numbers under them."""

from __future__ import annotations

from typing import Any

from luthier.report.preference_view import preference_charts
from luthier.report.read import RunFiles
from luthier.report.reward_view import is_online, reward_curves
from luthier.report.trend import small_charts, trend

__all__ = ["curves"]

_SMALL = (
    ("learning_rate", "Learning rate", "rate"),
    ("grad_norm", "Gradient norm", "norm"),
    ("tokens_per_second", "Tokens per second", "tokens/s"),
    ("token_accuracy", "Token accuracy", "share right"),
)


def curves(run: RunFiles) -> dict[str, Any]:
    """Charts of the training, and the numbers under them. Empty when nothing was logged."""
    if is_online(run):
        return reward_curves(run)
    loss = trend(run, "loss", name="loss", check_name="validation loss")
    if not loss.steps and not loss.checks:
        return {}
    small = small_charts(loss.steps, [(key, title, title, unit) for key, title, unit in _SMALL])
    view = loss.view(
        small + preference_charts(run), what="Loss", y_label="loss (nats)", best_words="Lowest validation loss"
    )
    return {**view, "best": min(loss.checks, key=lambda item: item[1]) if loss.checks else None}
