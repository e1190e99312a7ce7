"""Charts over a logarithmic, linear or categorical axis: curves, points that can be told apart, vertical marks.

Coordinates as in `svg.py`; colours come from the page's CSS, or from `standalone` for a file of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from luthier.report.svg import nice_ticks, number

__all__ = ["Axis", "Mark", "Series", "axis_for", "scale_chart", "standalone"]

_WIDTH, _HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, _WIDTH - 16, 28, _HEIGHT - 42
_MOST_LABELS = 9
_STYLE = """
svg { background: #ffffff; font-family: system-ui, "DejaVu Sans", sans-serif; }
text { fill: #6a6259; } .name { fill: #211d18; } .rule { stroke: #e5ded3; } .axis { stroke: #6a6259; }
polyline { fill: none; stroke-width: 1.6; }
.raw { stroke: #d9b48c; } .main { stroke: #8a4b12; } .second { stroke: #1d5f9b; }
circle { fill: #8a4b12; stroke: none; } circle.best { fill: #1b6e44; } circle.bad { fill: #a82a20; }
.mark { stroke: #1d5f9b; stroke-dasharray: 4 3; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """How values become positions."""

    kind: Literal["log", "linear", "category"]
    label: str
    values: tuple[str, ...] = ()
    """For `category`: all of them, in order; a position is an index into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points with one look; joined by a line if `joined`."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    """CSS class: `raw`, `main`, `second` for lines; `plain`, `best`, `bad` for dots."""
    joined: bool = False
    dots: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line with a word."""

    at: float
    word: str


def axis_for(label: str, values: Sequence[object]) -> tuple[Axis, list[float]]:
    """An axis for the values of a key, and the position of each: logarithmic for numbers over a factor above 20."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values) and numbers:
        spread = min(numbers) > 0 and max(numbers) / min(numbers) > 20
        return Axis(kind="log" if spread else "linear", label=label), numbers
    words = list(dict.fromkeys(str(value) for value in values))
    return Axis(kind="category", label=label, values=tuple(words)), [float(words.index(str(v))) for v in values]


def scale_chart(series: Sequence[Series], *, title: str, x: Axis, y_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """The chart; empty if there are no points."""
    shown = [item for item in series if item.points]
    if not shown:
        return Markup("")
    xs = [at for item in shown for at, _ in item.points] + [mark.at for mark in marks]
    ys = [value for item in shown for _, value in item.points]
    y_ticks = nice_ticks(min(ys), max(ys), 5)
    x_of, ticks = _positions(x, xs)

    def y_of(value: float) -> float:
        return _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_BOTTOM - _TOP)

    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}"'
            ' font-size="12">'
        ).format(_WIDTH, _HEIGHT, title)
    ]
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(_line("rule", _LEFT, y, _RIGHT, y))
        parts.append(_text(_LEFT - 8, y + 4, number(tick), "end"))
    parts += [_text(x_of(at), _BOTTOM + 18, word, "middle") for at, word in ticks]
    parts.append(_line("axis", _LEFT, _BOTTOM, _RIGHT, _BOTTOM))
    parts.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x.label, "middle", "name"))
    parts.append(_text(2, 11, y_label, "start", "name"))
    for mark in marks:
        parts.append(_line("mark", x_of(mark.at), _TOP, x_of(mark.at), _BOTTOM))
        parts.append(_text(x_of(mark.at), _TOP - 6, mark.word, "middle"))
    for item in shown:
        places = [(x_of(at), y_of(value)) for at, value in item.points]
        if item.joined:
            path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
            parts.append(Markup('<polyline class="{}" points="{}"/>').format(item.kind, path))
        if item.dots:
            parts += [
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{} {}: {}</title></circle>').format(
                    item.kind, left, top, item.name, _said(x, at), number(value, 4)
                )
                for (left, top), (at, value) in zip(places, item.points, strict=True)
            ]
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def standalone(chart: Markup) -> str:
    """The chart as an SVG file: with its name space and colours."""
    body = re.sub(r"<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', str(chart), count=1)
    head, _, rest = body.partition(">")
    return f"{head}><style>{_STYLE}</style>{rest}\n"


def _positions(axis: Axis, xs: Sequence[float]):  # type: ignore[no-untyped-def]
    """(value -> pixels, ticks with their words)."""
    if axis.kind == "category":
        count = max(1, len(axis.values))
        ticks = [(float(index), word if len(word) <= 16 else f"{word[:15]}…") for index, word in enumerate(axis.values)]
        return lambda at: _LEFT + (at + 0.5) / count * (_RIGHT - _LEFT), ticks[:: max(1, count // _MOST_LABELS)]
    low, high = min(xs), max(xs)
    if axis.kind == "linear":
        span = (high - low) or 1.0
        low, high = low - 0.04 * span, high + 0.04 * span
        ticks = [(tick, number(tick)) for tick in nice_ticks(low, high, 6) if low <= tick <= high]
        return lambda at: _LEFT + (at - low) / (high - low) * (_RIGHT - _LEFT), ticks
    log_low, log_high = math.log10(low) - 0.1, math.log10(high) + 0.1
    decades = range(math.ceil(log_low), math.floor(log_high) + 1)
    factors = (1,) if len(decades) > 3 else (1, 3)
    rates = [float(f"{factor}e{decade}") for decade in range(math.floor(log_low), decades.stop) for factor in factors]
    ticks = [(rate, f"{rate:g}") for rate in rates if log_low <= math.log10(rate) <= log_high]
    return lambda at: _LEFT + (math.log10(at) - log_low) / (log_high - log_low) * (_RIGHT - _LEFT), ticks


def _said(axis: Axis, at: float) -> str:
    return axis.values[round(at)] if axis.kind == "category" else f"{axis.label} {at:g}"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )
