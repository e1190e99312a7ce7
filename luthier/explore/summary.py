"""The map in a few lines for the terminal, and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.data.rows import number_of
from luthier.explore.chart import Chart

__all__ = ["chart_lines", "chart_to_json"]

_SHOWN = 6


def chart_to_json(chart: Chart) -> dict[str, Any]:
    """Clusters, outliers, coverage, scores by cluster, quality, times; outliers and uncovered rows by place."""
    items = chart.explored.items
    outliers = np.flatnonzero(chart.outliers())
    value: dict[str, Any] = {
        "rows": len(items),
        "clusters": _clusters(chart),
        "silhouette": {str(k): round(score, 4) for k, score in chart.clusters.silhouette.items()},
        "quality": {name: round(number, 4) for name, number in chart.quality.items()},
        "outliers": [
            {"ref": items[index].ref, "score": round(float(chart.outlier[index]), 4)}
            for index in outliers[np.argsort(-chart.outlier[outliers], kind="stable")]
        ],
        "outlier_fence": round(chart.fence, 4),
        "how": chart.how,
        "seconds": chart.seconds,
        "cpu_seconds": chart.cpu_seconds,
    }
    covered = chart.covered
    if covered:
        order = np.flatnonzero(covered.uncovered)
        order = order[np.argsort(-covered.distance[order], kind="stable")]
        value["coverage"] = {
            "held_out": len(covered.tests), "uncovered": len(order), "threshold": round(covered.threshold, 4),
            "by_cluster": chart.regions,
            "rows": [
                {"ref": items[covered.tests[k]].ref, "nearest": items[covered.nearest[k]].ref,
                 "distance": round(float(covered.distance[k]), 4)}
                for k in order
            ],
        }  # fmt: skip
    return value


def _clusters(chart: Chart) -> list[dict[str, Any]]:
    found = []
    for k, (label, terms) in enumerate(zip(chart.clusters.labels, chart.clusters.terms, strict=True)):
        mine = chart.clusters.of == k
        scores = {name: own[mine][~np.isnan(own[mine])] for name, own in chart.scores.items()}
        found.append({
            "label": label, "terms": terms, "rows": int(mine.sum()),
            "scores": {
                name: {"mean": round(float(own.mean()), 4), "rows": len(own)}
                for name, own in scores.items()
                if len(own)
            },
        })  # fmt: skip
    return found


def chart_lines(chart: Chart) -> list[str]:
    """What a person wants to know before opening the page."""
    entries = _clusters(chart)
    n = len(chart.explored.items)
    lines = [f"{n:,} rows in {len(entries)} clusters; the largest:"]
    lines += [f"  {entry['rows']:>7,}  {entry['label']}" for entry in entries[:_SHOWN]]
    outliers = np.flatnonzero(chart.outliers())
    lines.append(f"outliers: {number_of(len(outliers), 'row')}" + (", the farthest:" if len(outliers) else ""))
    for index in outliers[np.argsort(-chart.outlier[outliers], kind="stable")][:_SHOWN]:
        lines.append(f"  {chart.outlier[index]:.3f}  {chart.explored.items[index].ref}")
    covered = chart.covered
    if covered:
        share = covered.uncovered.mean()
        lines.append(
            f"held-out rows without a training row near: {int(covered.uncovered.sum()):,} of {len(covered.tests):,} "
            f"({share:.1%}; about 5% is what rows of one kind give)"
        )
        for region in [entry for entry in chart.regions if entry["uncovered"]][:_SHOWN]:
            lines.append(f"  {region['uncovered']:>5,} of {region['test']:,} in: {region['label']}")
    for name in chart.scores:
        scored = sorted((e["scores"][name]["mean"], e["label"], e["scores"][name]["rows"]) for e in entries
                        if name in e["scores"])  # fmt: skip
        low, high = scored[0], scored[-1]
        lines.append(
            f"{name}: lowest {low[0]:.3f} in {low[1]} ({low[2]:,} rows), highest {high[0]:.3f} in {high[1]} "
            f"({high[2]:,} rows)"
        )
    lines.append(f"picture: trustworthiness {chart.quality['trustworthiness']:.3f}")
    return lines
