"""Charts of online RL: the reward, and what belongs to it. The loss of a policy is no measure of progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from luthier.report.read import RunFiles
from luthier.report.svg import Line, line_chart

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


def reward_curves(run: RunFiles, smoothed: Callable[[Sequence[float], int], list[float]]) -> dict[str, Any]:
    """As `views.curves`, for a run that logged rewards."""
    steps = [line for line in run.metrics if _finite(line.get("reward"))]
    checks = [(line["step"], line["eval_reward"]) for line in run.metrics if _finite(line.get("eval_reward"))]
    raw = [(line["step"], line["reward"]) for line in steps]
    span = max(5, len(raw) // 12)
    soft = list(zip([step for step, _ in raw], smoothed([value for _, value in raw], span), strict=True))
    lines = [
        Line(name="mean reward", points=raw, kind="raw"),
        Line(name=f"mean reward, smoothed over {span} steps", points=soft if len(raw) > 5 else [], kind="main"),
        Line(name="held-out prompts", points=checks, kind="second", dots=True),
    ]

    def chart(key: str, title: str, unit: str) -> Markup:
        points = [(line["step"], line[key]) for line in steps if _finite(line.get(key))]
        line = Line(name=title.lower(), points=points, kind="main")
        return line_chart([line], title=title, x_label="step", y_label=unit, height=210, from_zero=True)

    labels = [name for name in (steps[-1] if steps else {}) if name.startswith("reward/")]
    small = [(f"Reward {name.removeprefix('reward/')}", chart(name, name.removeprefix("reward/"), "mean"))
             for name in (labels if len(labels) > 1 else [])]  # fmt: skip
    small += [(title, chart(key, title, unit)) for key, title, unit in _SMALL]
    return {
        "what": "Mean reward",
        "best_words": "Highest mean reward of held-out prompts",
        "legend": [(line.kind, line.name) for line in lines if line.points],
        "loss": _chart(lines, 1000, 320),
        "loss_narrow": _chart(lines, 480, 280),
        "small": [(title, image) for title, image in small if image],
        "first": raw[0][1] if raw else None,
        "last": soft[-1][1] if soft else None,
        "best": max(checks, key=lambda item: item[1]) if checks else None,
        "steps": steps[-1]["step"] if steps else None,
    }


def _chart(lines: Sequence[Line], width: int, height: int) -> Markup:
    return line_chart(lines, title="Mean reward", x_label="step", y_label="reward", width=width, height=height)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
