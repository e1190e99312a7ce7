"""The map as data: every number of the page, computed from the rows. `page.py` writes it as a page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.explore.clusters import Clusters, find_clusters
from luthier.explore.coverage import Coverage, coverage, coverage_by_cluster
from luthier.explore.languages import guess_languages
from luthier.explore.layout import NEIGHBOURS, project, quality
from luthier.explore.losses import Scores
from luthier.explore.neighbours import far_out, nearest
from luthier.explore.rows import Explored
from luthier.explore.turns import Turn, text_to_embed, turns_of
from luthier.explore.vectors import embed_with
from luthier.runtime.console import note, progress
from luthier.runtime.errors import DataError

__all__ = ["Chart", "draw_chart", "sampled"]

_LEAST_ROWS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Rows, where they stand, and what is known of them."""

    explored: Explored
    turns: list[list[Turn]]
    places: Any
    """[n, 2]."""
    clusters: Clusters
    outlier: Any
    """[n] float32: mean cosine distance to the nearest rows."""
    fence: float
    """Above it a row is an outlier."""
    lengths: Any
    """[n]: tokens if all rows have them, else characters."""
    unit: str
    languages: list[str]
    """Of each row; empty if they were not guessed."""
    covered: Coverage | None
    regions: list[dict[str, Any]]
    """`coverage_by_cluster`."""
    scores: Scores
    quality: dict[str, float]
    how: dict[str, str]
    """How it was made: embedding, projection, clusters, outliers, coverage, seed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each part, on the clock."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """Of each part, of the processor."""

    def outliers(self) -> Any:
        """[n] bool."""
        return self.outlier > self.fence


def draw_chart(
    explored: Explored,
    *,
    embedder: str = "tfidf",
    on: str = "conversation",
    projection: str = "graph",
    clusters: int | None = None,
    seed: int = 0,
    languages: bool = True,
    scores: Scores | None = None,
) -> Chart:
    """Compute the map.

    Args:
        explored: The rows.
        embedder: `tfidf`, `minilm`, or a folder.
        on: What of a row decides its place: `conversation`, `prompt` or `answer`.
        projection: `graph` or `umap`.
        clusters: Their number; None: by the silhouette.
        seed: Of every draw.
        languages: Guess them, if py3langid is there.
        scores: Of the rows, from a run.

    Raises:
        DataError: too few rows, or none with a word.
        EnvironmentProblem: a library or model is missing.
    """
    items = explored.items
    if len(items) < _LEAST_ROWS:
        message = f"a map needs {_LEAST_ROWS} rows or more; there are {len(items)}"
        raise DataError(code="D281", message=message, hint="`luthier data show` shows a few rows")
    clock = _Clock()
    turns = [turns_of(item.row) for item in items]
    texts = [text_to_embed(own, on) for own in turns]
    with progress("embed", len(texts)) if embedder != "tfidf" else nullcontext() as bar:
        vectors = embed_with(texts, embedder, seed=seed, advance=bar.advance if bar is not None else lambda count: None)
    values = vectors.values
    clock.lap("embed")
    near, distance = nearest(values, values, NEIGHBOURS, same=True, label="neighbours")
    outlier = distance.mean(axis=1)
    clock.lap("neighbours")
    places = project(values, near, seed=seed, method=projection)
    clock.lap("project")
    kept = quality(values, places, seed=seed)
    clock.lap("quality")
    found = find_clusters(values, vectors.counts, vectors.vocabulary, seed=seed, clusters=clusters)
    clock.lap("clusters")
    train, tests = _rows(explored, "train"), _rows(explored, "test") or _rows(explored, "validation")
    covered = coverage(values, train, tests, seed=seed)
    clock.lap("coverage")
    guessed = (guess_languages(texts) if languages else None) or []
    clock.lap("languages")
    counted = all(item.tokens is not None for item in items if item.split != "dropped") and explored.tokenizer
    lengths = [_length(item.tokens, own, tokens=bool(counted)) for item, own in zip(items, turns, strict=True)]
    return Chart(
        explored=explored, turns=turns, places=places, clusters=found, outlier=outlier, fence=far_out(outlier),
        lengths=np.asarray(lengths), unit="tokens" if counted else "characters", languages=guessed, covered=covered,
        regions=coverage_by_cluster(covered, found.of, found.labels, train) if covered else [],
        scores=scores or {}, quality=kept, seconds=clock.laps, cpu_seconds=clock.cpu,
        how=_how(vectors.how, on, projection, found, kept, covered, seed),
    )  # fmt: skip


def sampled(explored: Explored, most: int, seed: int) -> Explored:
    """At most `most` rows, drawn by the seed, in their order. That not all rows are there is said."""
    if len(explored.items) <= most:
        return explored
    chosen = np.sort(np.random.default_rng(seed).choice(len(explored.items), most, replace=False))
    note(f"the map shows {most:,} of {len(explored.items):,} rows, drawn by the seed (--rows)", style="yellow")
    return Explored(
        title=f"{explored.title} ({most:,} of {len(explored.items):,} rows)",
        items=[explored.items[index] for index in chosen], tokenizer=explored.tokenizer,
        max_length=explored.max_length, empty=explored.empty,
    )  # fmt: skip


def _rows(explored: Explored, split: str) -> list[int]:
    return [index for index, item in enumerate(explored.items) if item.split == split]


def _length(row: Any, turns: Sequence[Turn], *, tokens: bool) -> int:
    """Tokens; without them (dropped rows, no tokenizer) characters, or 0 where tokens are counted."""
    if tokens:
        return 0 if row is None else len(row)
    return sum(len(turn.text) for turn in turns)


def _how(
    vectors: str, on: str, projection: str, clusters: Clusters, kept: Mapping[str, float],
    covered: Coverage | None, seed: int,
) -> dict[str, str]:  # fmt: skip
    k = f"{kept['k']:.0f}"
    drawn = f"its {NEIGHBOURS}-nearest-neighbour graph drawn with UMAP's forces" if projection == "graph" else "UMAP"
    tried = {k: round(score, 3) for k, score in clusters.silhouette.items()}
    best = max(tried.values())
    chosen = f"k-means, {len(clusters.labels)} clusters"
    if len(tried) > 1:
        chosen += (
            f": the highest silhouette ({best}) of {min(tried)} to {max(tried)}, on {clusters.sample:,} rows; "
            "a label is the words with the highest class TF-IDF"
        )
    said = {
        "embedding": f"{vectors}, of the {on}",
        "picture": f"{drawn}. Trustworthiness {kept['trustworthiness']:.3f}; {kept['kept']:.0%} of the {k} nearest "
        f"in the picture are among the {k} nearest by cosine ({kept['rows']:.0f} rows asked)",
        "clusters": chosen,
        "outliers": f"mean cosine distance to the {NEIGHBOURS} nearest rows above Tukey's fence "
        "(third quartile and 1.5 times the distance between the quartiles)",
    }
    if covered:
        said["coverage"] = (
            f"a held-out row is uncovered if it is farther than {covered.threshold:.3f} from every training row: "
            f"95% of {covered.reference_rows:,} training rows are nearer than that to another one, so about 5% are "
            "uncovered where both are of one kind"
        )
    return said | {"seed": str(seed)}


class _Clock:
    """Seconds of each part, on the clock and of the processor (all threads)."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps[name], self.cpu[name] = (round(new - old, 3) for new, old in zip(now, self._last, strict=True))
        self._last = now
