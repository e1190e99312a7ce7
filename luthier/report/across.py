"""Several runs on one page: settings that differ, scores, loss curves, tests, rows whose outcome changed.

Self-contained like the report of one run: inline CSS and SVG, no script, no request to anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from luthier.report.read import clean
from luthier.report.svg import Line, intervals, line_chart, number
from luthier.report.trend import smoothed
from luthier.report.write import count, duration
from luthier.runtime.atomic import write_text

__all__ = ["render_page", "write_page"]

Json = Mapping[str, Any]
COLOURS = 10
"""Colours of the style sheet; the eleventh run has the first one again, dashed."""
_MOST_PATTERNS = 20
_OPEN_ROWS = 6


def write_page(comparison: Json, path: Path) -> None:
    """Write the page of a comparison.

    Args:
        comparison: From `evaluate.across.Comparison.as_json`.
        path: File to write.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    write_text(path, render_page(comparison))


@cache
def _template() -> Template:
    """Compiled once in a process; that takes longer than to fill it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count=count, number=number, duration=duration, shown=_shown)
    return environment.from_string((resources.files("luthier.report") / "across.html.jinja").read_text("utf-8"))


def render_page(comparison: Json) -> str:
    """The page as HTML."""
    value = clean(dict(comparison))
    files = resources.files("luthier.report")
    runs = value["runs"]
    return _template().render(
        value=value,
        runs=runs,
        # The style sheets are ours; everything else is escaped.
        style=Markup("\n".join((files / name).read_text("utf-8") for name in ("page.css", "across.css"))),
        headline=_headline(value),
        kinds={run["name"]: _kind(index) for index, run in enumerate(runs)},
        letters={run["name"]: run["letter"] for run in runs},
        scores=_scores(runs),
        charts=_charts(runs),
        most_patterns=_MOST_PATTERNS,
        open_rows=_OPEN_ROWS,
    )


def _kind(index: int) -> str:
    return f"run c{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")


def _headline(value: Json) -> dict[str, str]:
    """What the tests say, in one sentence, and its tone."""
    pairs = value["pairs"]
    if not pairs:
        scored = any(run["scores"] for run in value["runs"])
        return {"tone": "open", "text": "No two runs can be tested." if scored else "No run was scored."}
    counts = {word: sum(pair["verdict"] == word for pair in pairs) for word in ("better", "worse")}
    told = counts["better"] + counts["worse"]
    tests = f"{len(pairs):,} paired test{'s' if len(pairs) > 1 else ''}"
    if not told:
        return {"tone": "none", "text": f"No evidence of a difference in {tests}."}
    return {"tone": "better", "text": f"{told:,} of {tests} tell{'s' if told == 1 else ''} two runs apart."}


def _scores(runs: Sequence[Json]) -> list[dict[str, Any]]:
    """One entry a task and metric: a chart of all runs that were scored on it, and their lines."""
    keys = dict.fromkeys((score["task"], score["metric"]) for run in runs for score in run["scores"])
    found = []
    for task, metric in keys:
        lines = [
            {**score, "letter": run["letter"], "name": run["name"], "kind": _kind(index)}
            for index, run in enumerate(runs)
            for score in run["scores"]
            if (score["task"], score["metric"]) == (task, metric)
        ]
        drawn = [line for line in lines if line["low"] is not None and line["score"] is not None]
        share = metric != "loss" and all(0 <= line[key] <= 1 for line in drawn for key in ("score", "low", "high"))
        rows = [(line["letter"], line["score"], line["low"], line["high"], line["kind"]) for line in drawn]
        found.append(
            {
                "task": task, "metric": metric, "lines": lines, "share": share,
                "confidence": lines[0]["confidence"],
                "lower_is_better": not lines[0]["higher_is_better"],
                "chart": intervals(rows, title=f"{task}, {metric}: scores of the runs", share=share),
            }
        )  # fmt: skip
    return found


def _charts(runs: Sequence[Json]) -> list[dict[str, Any]]:
    """Curves of all runs on shared axes: over steps, and over trained tokens where steps are of different sizes."""
    found = []
    for key, title in (
        ("loss", "Training loss, smoothed"),
        ("eval_loss", "Loss on held-out rows"),
        ("reward", "Reward, smoothed"),
    ):
        unit = "mean reward" if key == "reward" else "loss (nats)"
        for x, x_label in (("steps", "step"), ("trained_tokens", "trained tokens")):
            lines = [line for index, run in enumerate(runs) if (line := _line(run, index, key, x)) is not None]
            if not lines or (x == "trained_tokens" and (len(lines) < 2 or _same_pace(runs, key))):
                continue
            heading = title if x == "steps" else f"{title}, over trained tokens"
            found.append(
                {
                    "title": heading,
                    "lines": [(line.kind, line.name) for line in lines],
                    "wide": line_chart(lines, title=heading, x_label=x_label, y_label=unit, width=1000, height=330),
                    "narrow": line_chart(lines, title=heading, x_label=x_label, y_label=unit, width=480, height=300),
                }
            )
    return found


def _line(run: Json, index: int, key: str, x: str) -> Line | None:
    curve = next((curve for curve in run["curves"] if curve["key"] == key), None)
    if curve is None or curve[x] is None:
        return None
    values = curve["values"]
    if key != "eval_loss":
        values = smoothed(values, max(5, len(values) // 12))
    points = list(zip(curve[x], values, strict=True))
    return Line(name=f"{run['letter']} {run['name']}", points=points, kind=_kind(index), dots=key == "eval_loss")


def _same_pace(runs: Sequence[Json], key: str) -> bool:
    """Whether a step is of about the same number of tokens in all runs, so that the second chart would say nothing."""
    paces = [
        curve["trained_tokens"][-1] / curve["steps"][-1]
        for run in runs
        for curve in run["curves"]
        if curve["key"] == key and curve["trained_tokens"] and curve["steps"][-1]
    ]
    return all(abs(a - b) <= 0.05 * max(a, b) for a, b in pairwise(paces))


def _shown(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
