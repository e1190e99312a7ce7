"""Trainings over preferences on the page: what held-out answers say before and after, and the curves of rewards."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from luthier.report.read import RunFiles
from luthier.report.svg import Line, line_chart

__all__ = ["WORDS", "preference_charts", "preference_rows", "preference_sentence"]

WORDS = {
    "implicit": "the chosen answer gained more probability than the rejected one",
    "log_prob": "the chosen answer is likelier",
    "log_prob_mean": "the chosen answer is likelier, a token",
    "reward": "the chosen answer has the higher reward",
    "auc": "a desired answer gained more than an undesired one (area under the ROC curve)",
}
_DASH = "\N{EN DASH}"


def preference_rows(run: RunFiles) -> list[dict[str, str]]:
    """A row of the table a measure: what, before, after with its interval, the test."""
    return [_row(measure) for measure in (run.preferences or {}).get("measures", [])]


def preference_sentence(run: RunFiles) -> str | None:
    """The first measure in a sentence, for a run without tasks."""
    measures = (run.preferences or {}).get("measures", [])
    if not measures or measures[0]["after"] is None:
        return None
    first, count = measures[0], (run.preferences or {})["n"]
    if first["name"] == "auc":
        return f"Desired from undesired answers: {first['after']:.2f} on {count:,} held-out rows (0.5 is chance)."
    return f"Right on {_percent(first['after'])} of {count:,} held-out pairs (half is chance)."


def preference_charts(run: RunFiles) -> list[tuple[str, Markup]]:
    """Curves of rewards, margin and accuracy, in training and on held-out rows; none for other trainings."""
    wanted = (
        ("Rewards", (("chosen", "rewards/chosen", "main"), ("rejected", "rewards/rejected", "second")), "reward"),
        ("Reward margin", (("training", "rewards/margins", "main"), ("held out", "eval_rewards/margins", "second")),
         "chosen less rejected"),
        ("Pairs in the right order",
         (("training", "rewards/accuracies", "main"), ("held out", "eval_rewards/accuracies", "second")), "share"),
        ("KL reference point", (("training", "kl", "main"), ("held out", "eval_kl", "second")), "nats"),
    )  # fmt: skip
    charts = []
    for title, keys, unit in wanted:
        lines = [Line(name=name, points=_points(run, key), kind=kind) for name, key, kind in keys]
        if any(line.points for line in lines):
            legend = ", ".join(f"{line.name} {_STYLE[line.kind]}" for line in lines if line.points)
            image = line_chart(lines, title=title, x_label="step", y_label=unit, height=210)
            charts.append((f"{title} ({legend})" if len(lines) > 1 else title, image))
    return charts


_STYLE = {"main": "solid", "second": "dashed"}


def _points(run: RunFiles, key: str) -> list[tuple[float, float]]:
    found = ((line["step"], line.get(key)) for line in run.metrics)
    return [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]


def _row(measure: dict[str, Any]) -> dict[str, str]:
    name, after = measure["name"], measure["after"]
    what = WORDS.get(name, name)
    if name == "auc":
        return {"what": what, "before": "0.5", "after": _DASH if after is None else f"{after:.3f}", "test": ""}
    shown = f"{_percent(after)} ({_percent(measure['low'])} to {_percent(measure['high'])})"
    if measure["before"] is None:
        return {"what": what, "before": _DASH, "after": shown, "test": "half is chance"}
    p_value = measure["p_value"]
    said = "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"
    return {
        "what": what, "before": _percent(measure["before"]), "after": shown,
        "test": f"{measure['verdict']}, {said}, {measure['test']}",
    }  # fmt: skip


def _percent(value: float) -> str:
    return f"{value * 100:.1f}\N{NARROW NO-BREAK SPACE}%"
