"""Which weights method `spectrum` chose: a map of module types and layers, from `spectrum/selection.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from luthier.report.read import RunFiles
from luthier.report.svg import number
from luthier.spectrum.names import layer_of, module_of, type_of

__all__ = ["Cell", "heat_map", "spectrum_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One module type in one layer."""

    score: float | None
    """Mean over what is there (experts); None: not ranked, or known from a list alone."""
    chosen: int
    """How many of its tensors are trained."""
    tensors: int


def spectrum_view(run: RunFiles) -> dict[str, Any] | None:
    """The section of the page; None for other methods, and before the training has begun."""
    method = run.manifest.get("recipe", {}).get("method", {})
    if method.get("name") != "spectrum" or not run.selection:
        return None
    chosen = [pattern for patterns in run.selection["chosen"].values() for pattern in patterns]
    scan, score = run.selection.get("scan"), run.selection.get("score")
    cells = _scanned(scan["results"], score, chosen) if scan else _listed(chosen)
    return {
        "score": score, "top_percent": run.selection.get("top_percent"), "ends": run.selection["ends"],
        "tensors": len(chosen), "skipped": len(scan["skipped"]) if scan else 0, "map": heat_map(cells),
    }  # fmt: skip


def _scanned(
    results: Iterable[Mapping[str, Any]], score: str | None, chosen: Iterable[str]
) -> dict[str, dict[int, Cell]]:
    """Cells with the mean score of each type in each layer."""
    trained = {pattern.removesuffix("$").removesuffix(".weight") for pattern in chosen}
    found: dict[str, dict[int, list[tuple[float | None, bool]]]] = {}
    for result in results:
        layer = layer_of(result["name"])
        assert layer is not None  # nothing outside the layers is ranked
        entry = (result.get(score or "calibrated"), module_of(result["name"]) in trained)
        found.setdefault(type_of(result["name"]), {}).setdefault(layer, []).append(entry)
    return {kind: {layer: _cell(entries) for layer, entries in row.items()} for kind, row in sorted(found.items())}


def _cell(entries: Sequence[tuple[float | None, bool]]) -> Cell:
    known = [score for score, _ in entries if score is not None]
    mean = sum(known) / len(known) if known else None
    return Cell(score=mean, chosen=sum(chosen for _, chosen in entries), tensors=len(entries))


def _listed(chosen: Iterable[str]) -> dict[str, dict[int, Cell]]:
    """Cells of a list without scores: only what is chosen."""
    found: dict[str, dict[int, Cell]] = {}
    for pattern in chosen:
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        layer = layer_of(name)
        if layer is not None:
            found.setdefault(type_of(name), {})[layer] = Cell(score=None, chosen=1, tensors=1)
    return found


def heat_map(cells: Mapping[str, Mapping[int, Cell]]) -> Markup:
    """Types down, layers across; the darker, the higher the score inside its type; a frame is trained.

    Scores are compared inside a type only, so each row has its own scale: its lowest score is pale, its highest full.
    """
    layers = [layer for row in cells.values() for layer in row]
    if not layers:
        return Markup("")
    columns, left, top, height = max(layers) + 1, 150, 6, 22
    wide = max(8.0, min(26.0, 830 / columns))
    width, bottom = round(left + columns * wide + 10), top + height * len(cells)
    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}"'
            ' font-size="12">'
        ).format(width, bottom + 38, "Chosen layers by module type")
    ]
    for place, (kind, row) in enumerate(cells.items()):
        y = top + height * place
        parts.append(
            Markup('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>').format(left - 8, y + 15, kind)
        )
        known = [cell.score for cell in row.values() if cell.score is not None]
        span = (min(known), max(known)) if known else (0.0, 0.0)
        for layer, cell in sorted(row.items()):
            place_and_size = (left + layer * wide + 1.5, y + 2, wide - 3, height - 4)
            parts.append(_rectangle(cell, *place_and_size, _shade(cell.score, *span), _told(kind, layer, cell)))
    step = max(1, round(columns / 12))
    for layer in range(0, columns, step):
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                left + (layer + 0.5) * wide, bottom + 16, layer
            )
        )
    parts.append(
        Markup('<text class="name" x="{:.1f}" y="{}" text-anchor="middle">layer</text></svg>').format(
            left + columns * wide / 2, bottom + 34
        )
    )
    return Markup("").join(parts)


def _rectangle(cell: Cell, x: float, y: float, width: float, height: float, shade: float, told: str) -> Markup:
    return Markup(
        '<rect class="heat{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    ).format(" chosen" if cell.chosen else "", x, y, width, height, shade, told)


def _shade(score: float | None, low: float, high: float) -> float:
    """0.08 for the lowest score of a row to 1 for its highest; 0.5 where there is no score."""
    if score is None:
        return 0.5
    return 0.08 + 0.92 * ((score - low) / (high - low) if high > low else 1.0)


def _told(kind: str, layer: int, cell: Cell) -> str:
    score = "" if cell.score is None else f", score {number(cell.score)}"
    share = f"{cell.chosen} of {cell.tensors} trained" if cell.tensors > 1 else "trained" if cell.chosen else "frozen"
    return f"{kind}, layer {layer}{score}: {share}"
