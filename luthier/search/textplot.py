"""A curve in a terminal: dots in a grid of characters over a logarithmic axis. Pure text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["text_plot"]


def text_plot(
    points: Sequence[tuple[float, float]],
    *,
    marks: Mapping[str, float] | None = None,
    width: int = 64,
    height: int = 10,
    label: str = "",
) -> str:
    """Draw (x, y) with x > 0 on a logarithmic axis.

    Args:
        points: At least one; several in one column are averaged.
        marks: A single character for each x to point at below the axis.
        width: Columns of the grid.
        height: Lines of the grid.
        label: What y is.
    """
    xs, ys = [math.log10(x) for x, _ in points], [y for _, y in points]
    placed = {sign: math.log10(x) for sign, x in (marks or {}).items()}
    left, right = min([*xs, *placed.values()]), max([*xs, *placed.values()])
    low, high = min(ys), max(ys)

    def column(x: float) -> int:
        return round((x - left) / ((right - left) or 1.0) * (width - 1))

    heights: dict[int, list[float]] = {}
    for x, y in zip(xs, ys, strict=True):
        heights.setdefault(column(x), []).append(y)
    grid = [[" "] * width for _ in range(height)]
    for at, values in heights.items():
        mean = sum(values) / len(values)
        grid[round((high - mean) / ((high - low) or 1.0) * (height - 1))][at] = "•"
    gutter = max(len(f"{low:.3g}"), len(f"{high:.3g}"))
    lines = [f"{label}"] if label else []
    for index, row in enumerate(grid):
        scale = f"{high:.3g}" if index == 0 else f"{low:.3g}" if index == height - 1 else ""
        lines.append(f"{scale:>{gutter}} ┤{''.join(row)}".rstrip())
    axis = ["─"] * width
    for sign, x in placed.items():
        axis[column(x)] = sign
    lines.append(f"{'':>{gutter}} └{''.join(axis)}")
    lines.append(f"{'':>{gutter}}  {_decades(left, right, column, width)}".rstrip())
    return "\n".join(lines)


def _decades(left: float, right: float, column, width: int) -> str:  # type: ignore[no-untyped-def]
    """`1e-5` and the like under their columns, as many as fit."""
    text = [" "] * (width + 6)
    free = 0
    for decade in range(math.ceil(left - 1e-9), math.floor(right + 1e-9) + 1):
        word, at = f"1e{decade}", column(decade)
        if at >= free:
            text[at : at + len(word)] = word
            free = at + len(word) + 2
    return "".join(text)
