"""What a training logged over its steps, as points to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Curve", "curves_of"]

KEYS = ("loss", "eval_loss", "reward")
_MOST_POINTS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One measure of one run."""

    key: str
    """`loss`, `eval_loss` (nats a trained token) or `reward`."""
    steps: tuple[int, ...]
    trained_tokens: tuple[int, ...] | None
    """Trained tokens up to each step: two batch sizes meet on this axis. None where the log does not say."""
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As lists."""
        tokens = None if self.trained_tokens is None else list(self.trained_tokens)
        return {"key": self.key, "steps": list(self.steps), "trained_tokens": tokens, "values": list(self.values)}


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """The curves of a run's `metrics.jsonl`; more than 2,000 points are thinned evenly, the last one is kept."""
    tokens, total = {}, 0
    for line in metrics:
        total += int(line.get("trained_tokens") or 0)
        tokens[line.get("step")] = total
    curves = []
    for key in KEYS:
        points = [
            (int(line["step"]), float(line[key])) for line in metrics if "step" in line and _finite(line.get(key))
        ]
        if not points:
            continue
        stride = math.ceil(len(points) / _MOST_POINTS)
        kept = [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else [])]
        curves.append(
            Curve(
                key=key,
                steps=tuple(step for step, _ in kept),
                trained_tokens=tuple(tokens[step] for step, _ in kept) if total else None,
                values=tuple(value for _, value in kept),
            )
        )
    return tuple(curves)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
