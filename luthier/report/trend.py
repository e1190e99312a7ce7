"""A measure over the steps: raw, smoothed, and on held-out rows; what the charts of any training are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from luthier.report.read import RunFiles
from luthier.report.svg import Line, line_chart

__all__ = ["Trend", "small_charts", "smoothed", "trend"]

Point = tuple[int, float]


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """Exponential moving average with weight 2 / (span + 1) for the newest value; the start is not biased to 0."""
    keep, total, weight, result = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        result.append(total / weight)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One measure of a run."""

    steps: Sequence[dict[str, Any]]
    """Logged lines that hold it."""
    raw: Sequence[Point]
    soft: Sequence[Point]
    checks: Sequence[Point]
    """On held-out rows."""
    lines: Sequence[Line]

    def view(self, small: Sequence[tuple[str, Markup]], *, what: str, y_label: str, best_words: str) -> dict[str, Any]:
        """Charts and numbers, but for the best check."""
        shared = {"title": what, "x_label": "step", "y_label": y_label}
        return {
            "what": what,
            "best_words": best_words,
            "legend": [(line.kind, line.name) for line in self.lines if line.points],
            "loss": line_chart(self.lines, **shared, width=1000, height=320),  # type: ignore[arg-type]
            "loss_narrow": line_chart(self.lines, **shared, width=480, height=280),  # type: ignore[arg-type]
            "small": list(small),
            "first": self.raw[0][1] if self.raw else None,
            "last": self.soft[-1][1] if self.soft else None,
            "steps": self.steps[-1]["step"] if self.steps else None,
        }


def trend(run: RunFiles, key: str, *, name: str, check_name: str) -> Trend:
    """The measure `key` of `metrics.jsonl`, and `eval_` of it."""
    steps = [line for line in run.metrics if _finite(line.get(key))]
    checks = [(line["step"], line[f"eval_{key}"]) for line in run.metrics if _finite(line.get(f"eval_{key}"))]
    raw = [(line["step"], line[key]) for line in steps]
    span = max(5, len(raw) // 12)
    soft = list(zip([step for step, _ in raw], smoothed([value for _, value in raw], span), strict=True))
    lines = [
        Line(name=name, points=raw, kind="raw"),
        Line(name=f"{name}, smoothed over {span} steps", points=soft if len(raw) > 5 else [], kind="main"),
        Line(name=check_name, points=checks, kind="second", dots=True),
    ]
    return Trend(steps=steps, raw=raw, soft=soft, checks=checks, lines=lines)


def small_charts(
    steps: Sequence[dict[str, Any]], wanted: Sequence[tuple[str, str, str, str]]
) -> list[tuple[str, Markup]]:
    """(heading, chart) of every (key, heading, title, unit) that was logged."""
    found = []
    for key, heading, title, unit in wanted:
        points = [(line["step"], line[key]) for line in steps if _finite(line.get(key))]
        line = Line(name=title.lower(), points=points, kind="main")
        image = line_chart([line], title=title, x_label="step", y_label=unit, height=210, from_zero=True)
        if image:
            found.append((heading, image))
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
