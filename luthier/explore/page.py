"""Write `map.html`: one file that asks nothing of the network and runs nothing but its own script.

A content security policy in the page allows one style sheet and one script, by their hashes; everything else (other
scripts, event handlers in attributes, requests, frames, forms) is forbidden, and so is making HTML from text in script
(`require-trusted-types-for`). Rows reach the page as JSON in elements that are not run, and the script only ever sets
text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup

from luthier.data.rows import number_of
from luthier.explore.chart import Chart
from luthier.explore.coverage import Coverage
from luthier.explore.pack import BLOCK_ROWS, blocks, column, embed_json
from luthier.explore.tokens import KINDS, TokenPacker
from luthier.report.svg import number
from luthier.runtime.console import progress

__all__ = ["render_map"]

_LONG = 5_000
_SCRIPTS = ("data", "draw", "filter", "colour", "hand", "panels", "app")


def render_map(chart: Chart) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    files = resources.files("luthier.explore") / "page"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, count=lambda value: f"{value:,}")
    report = (resources.files("luthier.report") / "page.css").read_text("utf-8")
    style = report + (files / "map.css").read_text("utf-8")
    parts = [(files / f"{name}.js").read_text("utf-8") for name in _SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    packed = list(_blocks(chart))
    return environment.from_string((files / "map.html.jinja").read_text("utf-8")).render(
        # Ours, and hashed: everything else is escaped.
        style=Markup(style), script=Markup(script), policy=_policy(style, script),
        head=Markup(embed_json(_head(chart))), blocks=[(kind, index, Markup(text)) for kind, index, text in packed],
        title=chart.explored.title, unit=chart.unit, summary=_summary(chart), how=chart.how,
        clusters=_clusters(chart), scored=list(chart.scores), **_coverage(chart),
    )  # fmt: skip


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "form-action 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _head(chart: Chart) -> dict[str, Any]:
    """Everything but the texts; see `pack.py`."""
    items = chart.explored.items
    flat = _unit_square(chart.places)
    files, file_of = _numbered([item.row.ref.file for item in items])
    splits, split_of = _numbered([item.split for item in items])
    sources, source_of = _numbered([item.source for item in items])
    cats = [
        _category("cluster", "cluster", _apart(chart.clusters.labels), chart.clusters.of),
        _category("split", "split", splits, split_of),
        _category("source", "source", sources, source_of),
    ]
    if chart.languages:
        languages, language_of = _numbered(chart.languages)
        cats.append(_category("language", "language", languages, language_of))
    nums = [_numeric("length", "length", chart.unit, chart.lengths), _numeric("outlier", "outlier score", "",
                                                                              chart.outlier)]  # fmt: skip
    covered = chart.covered
    if covered:
        distance = np.full(len(items), np.nan, np.float32)
        distance[covered.tests] = covered.distance
        nums.append(_numeric("distance", "distance to training", "", distance))
    nums += [_numeric(f"score {index}", name, "", own) for index, (name, own) in enumerate(chart.scores.items())]
    middles = [np.median(flat[chart.clusters.of == k], axis=0) for k in range(len(chart.clusters.labels))]
    return {
        "version": 1, "n": len(items), "block": BLOCK_ROWS, "x": column(flat[:, 0], "u16"),
        "y": column(flat[:, 1], "u16"), "files": files, "file": column(file_of),
        "line": column([item.row.ref.line for item in items]), "cats": cats, "nums": nums, "kinds": list(KINDS),
        "fence": chart.fence, "threshold": covered.threshold if covered else None,
        "nearest": {"rows": column(covered.tests, "u32"), "of": column(covered.nearest, "u32")} if covered else None,
        "tokens": chart.explored.tokenizer is not None,
        "clusters": [
            {"label": label, "x": int(middle[0]), "y": int(middle[1])}
            for label, middle in zip(chart.clusters.labels, middles, strict=True)
        ],
        "why": {index: item.why for index, item in enumerate(items) if item.why},
    }  # fmt: skip


def _unit_square(places: Any) -> Any:
    """[n, 2] 0 to 65535, both axes on one scale. The few rows far outside (beyond 0.1%) stand at the edge."""
    low, high = np.percentile(places, [0.1, 99.9], axis=0)
    size = max(float((high - low).max()) * 1.06, 1e-9)
    shares = (places - (low + high) / 2) / size + 0.5
    return np.round(np.clip(shares, 0.0, 1.0) * 65535).astype(np.uint16)


def _numbered(values: Sequence[str]) -> tuple[list[str], Any]:
    names = list(dict.fromkeys(values))
    number_of = {name: place for place, name in enumerate(names)}
    return names, np.asarray([number_of[value] for value in values])


def _apart(labels: Sequence[str]) -> list[str]:
    """Equal labels get a number."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found


def _category(key: str, name: str, values: Sequence[str], of: Any) -> dict[str, Any]:
    return {"key": key, "name": name, "values": list(values), "data": column(of)}


def _numeric(key: str, name: str, unit: str, values: Any) -> dict[str, Any]:
    return {"key": key, "name": name, "unit": unit, "data": column(values, "f32")}


def _blocks(chart: Chart) -> Iterator[tuple[str, int, str]]:
    """Chats of all rows, then their tokens if they are known."""
    chats = ([[t.role, t.text, t.mark] if t.mark else [t.role, t.text] for t in own] for own in chart.turns)
    yield from (("chat", index, text) for index, text in enumerate(blocks(chats)))
    if chart.explored.tokenizer is None:
        return
    packer = TokenPacker(chart.explored.tokenizer)
    items = chart.explored.items
    with progress("tokens of the page", len(items)) if len(items) > _LONG else nullcontext() as bar:

        def rows() -> Iterator[Any]:
            for item, turns in zip(items, chart.turns, strict=True):
                yield packer.pack(item.tokens, turns) if item.tokens is not None else None
                if bar is not None:
                    bar.advance()

        yield from (("tokens", index, text) for index, text in enumerate(blocks(rows())))


def _summary(chart: Chart) -> list[str]:
    items = chart.explored.items
    splits, of = _numbered([item.split for item in items])
    parts = [f"{int((of == k).sum()):,} {name}" for k, name in enumerate(splits)]
    parts += [number_of(len(chart.clusters.labels), "cluster"), number_of(int(chart.outliers().sum()), "outlier")]
    if chart.explored.empty:
        parts.append(f"{len(chart.explored.empty):,} rows with nothing to train on are not here")
    return parts


def _clusters(chart: Chart) -> list[dict[str, Any]]:
    found = []
    outliers = chart.outliers()
    for k, (label, terms) in enumerate(zip(chart.clusters.labels, chart.clusters.terms, strict=True)):
        mine = chart.clusters.of == k
        scores = [own[mine][~np.isnan(own[mine])] for own in chart.scores.values()]
        found.append({
            "label": label, "terms": terms, "rows": int(mine.sum()), "outliers": int(outliers[mine].sum()),
            "length": float(np.median(chart.lengths[mine])),
            "scores": [(float(own.mean()) if len(own) else 0.0, len(own)) for own in scores],
        })  # fmt: skip
    return found


def _coverage(chart: Chart) -> dict[str, Any]:
    covered: Coverage | None = chart.covered
    if covered is None:
        return {"regions": [], "uncovered": 0, "held_out": 0, "held_out_name": ""}
    return {
        "regions": chart.regions, "uncovered": int(covered.uncovered.sum()), "held_out": len(covered.tests),
        "held_out_name": chart.explored.items[int(covered.tests[0])].split,
    }  # fmt: skip
