"""Charts as inline SVG: axes, ticks, labels, tooltips through <title>. Colours come from the page's CSS.

Coordinates: x to the right, y down, in CSS pixels at the chart's natural width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Line", "bars", "histogram", "intervals", "line_chart", "nice_ticks", "number"]

_FONT_HEIGHT = 12
_MOST_TOOLTIPS = 150
_MOST_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    """CSS class: `raw`, `main`, `second`."""
    dots: bool = False


def number(value: float, digits: int = 3) -> str:
    """A short number: 0.00123, 1.5e-05, 12,300, 2e12."""
    if value == 0:
        return "0"
    size = abs(value)
    if 10_000 <= size < 1e10:
        return f"{value:,.0f}"
    if size < 1e-4 or size >= 1e10:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 5 times a power of ten) that span `low` to `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """Each tick as a short number, with as many digits as neighbours need to differ."""
    found: list[str] = []
    for digits in range(3, 9):
        found = [number(tick, digits) for tick in ticks]
        if len(set(found)) == len(found):
            break
    return found


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: int = 480,
    height: int = 240,
    from_zero: bool = False,
) -> Markup:
    """Curves over a shared x axis; lines without points are left out, and no points at all give an empty string."""
    shown = [line for line in lines if line.points]
    if not shown:
        return Markup("")
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    whole = all(float(x).is_integer() for x in xs)  # steps: no marks between them
    x_ticks = [
        tick
        for tick in nice_ticks(min(xs), max(xs), 6)
        if min(xs) <= tick <= max(xs) and (not whole or tick.is_integer())
    ]
    y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys), 5)
    left, right, top, bottom = 58, width - 14, 28, height - 42
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_of(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def y_of(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    parts = [_open(width, height, title)]
    for tick, text in zip(y_ticks, _tick_texts(y_ticks), strict=True):
        y = y_of(tick)
        parts.append(Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, y, y))
        parts.append(_label(left - 8, y + 4, text, anchor="end"))
    for tick, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        parts.append(_label(x_of(tick), bottom + 18, text, anchor="middle"))
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, bottom, bottom))
    parts.append(_label((left + right) / 2, height - 6, x_label, anchor="middle", kind="name"))
    parts.append(_label(2, 11, y_label, anchor="start", kind="name"))
    for line in shown:
        drawn = _thinned(line.points, _MOST_POINTS)
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in drawn)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(line.kind, path))
        parts += _tooltips(line, x_of, y_of, x_label)
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _tooltips(line: Line, x_of, y_of, x_label: str) -> list[Markup]:  # type: ignore[no-untyped-def]
    kind = f"{line.kind} dot" if line.dots else "hit"
    radius = 3.5 if line.dots else 6
    return [
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{} {}: {} {}</title></circle>').format(
            kind, x_of(x), y_of(y), radius, x_label, number(x), line.name, number(y, 4)
        )
        for x, y in _thinned(line.points, _MOST_TOOLTIPS)
    ]


def histogram(
    bins: Sequence[tuple[float, float, int]], *, title: str, x_label: str, limit: float | None = None
) -> Markup:
    """Counts over ranges; `limit` draws a vertical mark (the longest row that is allowed)."""
    if not bins:
        return Markup("")
    width, height, left, right, top, bottom = 480, 200, 44, 466, 16, 158
    x_low, x_high = bins[0][0], max(bins[-1][1], limit or 0.0)
    y_ticks = nice_ticks(0, max(count for _, _, count in bins), 4)

    def x_of(value: float) -> float:
        return left + (value - x_low) / ((x_high - x_low) or 1) * (right - left)

    def y_of(value: float) -> float:
        return bottom - value / y_ticks[-1] * (bottom - top)

    parts = [_open(width, height, title)]
    for tick in y_ticks:
        parts.append(
            Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                left, right, y_of(tick), y_of(tick)
            )
        )
        parts.append(_label(left - 8, y_of(tick) + 4, number(tick), anchor="end"))
    for low, high, count in bins:
        x, bar = x_of(low), max(1.0, x_of(high) - x_of(low) - 1)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5">'
                "<title>{}</title></rect>"
            ).format(
                x,
                y_of(count),
                bar,
                max(0.0, bottom - y_of(count)),
                f"{number(low)} to {number(high)} tokens: {count:,} rows",
            )
        )
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, bottom, bottom))
    for tick in nice_ticks(x_low, x_high, 6):
        if x_low <= tick <= x_high:
            parts.append(_label(x_of(tick), bottom + 18, number(tick), anchor="middle"))
    if limit is not None:
        parts.append(
            Markup(
                '<line class="limit" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"><title>max_length {3}</title></line>'
            ).format(x_of(limit), top, bottom, number(limit))
        )
    parts.append(_label((left + right) / 2, height - 4, x_label, anchor="middle", kind="name"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    score: float
    low: float
    high: float
    kind: str


def intervals(
    rows: Sequence[tuple[str, float, float, float, str]], *, title: str, share: bool, width: int = 480
) -> Markup:
    """Scores with their intervals on one axis, a row each: label, score, low, high, CSS class.

    `share`: scores are shares, and the axis is 0 to 100 %.
    """
    if not rows:
        return Markup("")
    items = [_Row(*row) for row in rows]
    left, right, step = 64, width - 58, 34
    height = step * len(items) + 30
    ticks = (
        [0, 0.25, 0.5, 0.75, 1]
        if share
        else nice_ticks(min(0.0, *(i.low for i in items)), max(i.high for i in items), 4)
    )

    def x_of(value: float) -> float:
        return left + (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    def said(value: float) -> str:
        return f"{value:.1%}" if share else number(value)

    parts = [_open(width, height, title)]
    for tick in ticks:
        parts.append(
            Markup('<line class="rule" x1="{0:.1f}" x2="{0:.1f}" y1="6" y2="{1}"/>').format(x_of(tick), height - 22)
        )
        parts.append(_label(x_of(tick), height - 6, f"{tick:.0%}" if share else number(tick), anchor="middle"))
    for index, item in enumerate(items):
        y = 6 + step * index + step / 2
        parts.append(_label(left - 12, y + 4, item.name, anchor="end", kind="name"))
        parts.append(
            Markup(
                '<g class="{}"><title>{}</title><line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
                '<circle class="score" cx="{:.1f}" cy="{}" r="6"/></g>'
            ).format(
                item.kind,
                f"{item.name}: {said(item.score)}, interval {said(item.low)} to {said(item.high)}",
                x_of(item.low),
                x_of(item.high),
                y,
                y,
                x_of(item.score),
                y,
            )
        )
        parts.append(_label(width - 50, y + 4, said(item.score), anchor="start", kind="value"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def bars(rows: Sequence[tuple[str, float]], *, title: str) -> Markup:
    """Seconds of each stage as horizontal bars."""
    if not rows:
        return Markup("")
    width, left, right, step = 480, 84, 410, 24
    height, most = step * len(rows) + 6, max(value for _, value in rows) or 1.0
    parts = [_open(width, height, title)]
    for index, (name, value) in enumerate(rows):
        y = 3 + step * index
        bar = max(2.0, value / most * (right - left))
        parts.append(_label(left - 10, y + 16, name, anchor="end", kind="name"))
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{:.1f}" height="14" rx="2"/>').format(left, y + 5, bar)
        )
        parts.append(
            _label(left + bar + 7, y + 16, f"{value:.1f} s" if value < 10 else f"{value:,.0f} s", anchor="start")
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _open(width: int, height: int, title: str) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}" font-size="{3}">'
    ).format(width, height, title, _FONT_HEIGHT)


def _label(x: float, y: float, text: str, *, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about `most` points: every k-th, and the last."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
