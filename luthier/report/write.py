"""Write `report.html`: the run on one page.

Self-contained: inline CSS and SVG, no script, no font, no request to anywhere; a content security
policy in the page forbids all of them, so that text from data and models stays text.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from luthier.report import answers_view, curves, views
from luthier.report.plan_view import measured_facts, plan_rows
from luthier.report.preference_view import preference_rows
from luthier.report.processes_view import process_facts
from luthier.report.read import RunFiles, read_run
from luthier.report.spectrum_view import spectrum_view
from luthier.report.svg import number
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_text

__all__ = ["count", "duration", "render", "write_report"]


def write_report(run: RunFolder) -> Path:
    """Write the page of a run into its folder; returns the file.

    Raises:
        RunFailed: a file of the run folder is damaged.
        EnvironmentProblem: the page cannot be written.
    """
    path = run.path / "report.html"
    write_text(path, render(read_run(run)))
    return path


@cache
def _template() -> Template:
    """Compiled once in a process; that takes longer than to fill it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count=count, number=number, bytes=_bytes, duration=duration, short=_short, ticks=_ticks)
    return environment.from_string((resources.files("luthier.report") / "page.html.jinja").read_text("utf-8"))


def render(run: RunFiles) -> str:
    """The page as HTML."""
    files = resources.files("luthier.report")
    shown = views.tasks(run)
    examples = answers_view.examples(run)
    return _template().render(
        run=run,
        # The style sheet is ours; everything else is escaped.
        style=Markup((files / "page.css").read_text("utf-8")),
        title=_title(run),
        model=_recipe(run).get("model", {}).get("name_or_path", ""),
        synthetic="synthetic" in run.data_card.partition("\n")[0].lower(),
        headline=views.headline(run, shown),
        tasks=shown,
        data=views.data_view(run),
        samples=views.token_samples(run),
        curves=curves.curves(run),
        preferences=preference_rows(run),
        processes=process_facts(run.events, result=run.train, measured=run.measured, plan=run.plan),
        stages=views.stage_chart(run),
        spectrum=spectrum_view(run),
        chosen=views.chosen_values(run),
        planned=plan_rows(run),
        measured=measured_facts(run),
        examples=examples,
        verdicts=views.verdict_lines(run),
        wrong=answers_view.still_wrong(run),
        changed=sum(len(task["compared"].get("changed", [])) for task in shown if task["compared"]),
        commands=views.commands(run),
        total_seconds=sum(run.seconds.values()),
    )


def _recipe(run: RunFiles) -> dict[str, Any]:
    recipe = run.manifest.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _title(run: RunFiles) -> str:
    return str(_recipe(run).get("name") or run.path.name)


def count(value: Any) -> str:
    """A whole number with separators; another number shortened."""
    return f"{value:,}" if isinstance(value, int) else number(float(value))


def _bytes(value: int) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _ticks(text: str) -> Markup:
    """Escaped text in which `this` becomes code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
