"""Charts of online RL: the reward, and what belongs to it. The loss of a policy is no measure of progress."""

from __future__ import annotations

from typing import Any

from luthier.report.read import RunFiles
from luthier.report.trend import small_charts, trend

__all__ = ["is_online", "reward_curves"]

_SMALL = (
    ("completion_tokens", "Tokens of a completion", "tokens"),
    ("clipped_completions", "Completions cut at the longest length", "share"),
    ("equal_groups", "Groups with equal rewards", "share"),
    ("entropy", "Entropy", "nats"),
    ("kl", "KL from the start", "nats"),
    ("grad_norm", "Gradient norm", "norm"),
    ("learning_rate", "Learning rate", "rate"),
    ("tokens_per_second", "Tokens per second", "tokens/s"),
)


def is_online(run: RunFiles) -> bool:
    """Whether the run logged rewards."""
    return any("reward" in line for line in run.metrics)


def reward_curves(run: RunFiles) -> dict[str, Any]:
    """As `curves.curves`, for a run that logged rewards."""
    reward = trend(run, "reward", name="mean reward", check_name="held-out prompts")
    labels = [name for name in (reward.steps[-1] if reward.steps else {}) if name.startswith("reward/")]
    bare = [(name, name.removeprefix("reward/")) for name in (labels if len(labels) > 1 else [])]
    wanted = [(name, f"Reward {label}", label, "mean") for name, label in bare]
    wanted += [(key, title, title, unit) for key, title, unit in _SMALL]
    view = reward.view(
        small_charts(reward.steps, wanted), what="Mean reward", y_label="reward",
        best_words="Highest mean reward of held-out prompts",
    )  # fmt: skip
    return {**view, "best": max(reward.checks, key=lambda item: item[1]) if reward.checks else None}
