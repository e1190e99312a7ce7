"""`index.html` of a sweep: the best, a chart for each key, a table of all trials. Self-contained, no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from luthier.report.scale_chart import Series, axis_for, scale_chart
from luthier.report.svg import number
from luthier.search.trials import TrialResult

if TYPE_CHECKING:
    from luthier.search.sweep import SweepResult

__all__ = ["render_page", "shown_value"]


def render_page(result: SweepResult) -> str:
    """The page as HTML; text of recipes and errors is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, shown=shown_value, leaf=lambda key: key.rpartition(".")[2])
    template = environment.from_string((resources.files("luthier.search") / "page.html.jinja").read_text("utf-8"))
    style = (resources.files("luthier.report") / "page.css").read_text("utf-8")
    return template.render(
        result=result, style=Markup(style), charts=[(key, _chart(result, key)) for key in result.axes],
        finished=sum(item.value is not None for item in result.trials),
        names={item.folder: Path(item.folder).name for item in result.trials},
    )  # fmt: skip


def shown_value(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _chart(result: SweepResult, key: str) -> Markup:
    """Metric over the values of one key; every dot is a trial, so how far it spreads shows what the other keys do."""
    done: Sequence[TrialResult] = [item for item in result.trials if item.value is not None]
    axis, places = axis_for(key, [_plain(item.settings[key]) for item in done])
    points = [(at, item.value) for at, item in zip(places, done, strict=True) if item.value is not None]
    series = [Series(name=result.metric, points=points[1:], kind="plain"),
              Series(name=f"best {result.metric}", points=points[:1], kind="best")]  # fmt: skip
    return scale_chart(series, title=f"{result.metric} over {key}", x=axis, y_label=result.metric)


def _plain(value: Any) -> Any:
    """Numbers as they are, all else in words."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else shown_value(value)
