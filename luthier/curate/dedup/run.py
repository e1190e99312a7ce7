"""Find duplicates and say which rows stay. Read `deduplicate` from top to bottom.

    exact     equal texts, by hash
    fuzzy     Jaccard index of shingles, of what exact has left
    semantic  cosine of vectors, of what fuzzy has left

Nothing is dropped without its name, the row it duplicates, and how similar they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.curate.dedup.exact import equal_rows
from luthier.curate.dedup.fuzzy import Fuzzy
from luthier.curate.dedup.keep import choose
from luthier.curate.dedup.minhash import bands_for
from luthier.curate.dedup.semantic import Semantic
from luthier.curate.dedup.shown import bar_for
from luthier.curate.dedup.views import Views
from luthier.curate.text import refuse_without_prompt
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DedupSection

__all__ = ["Deduplicated", "Duplicate", "Stage", "deduplicate"]

Stage = Literal["exact", "fuzzy", "semantic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A row that is dropped."""

    row: int
    """Its index."""
    of: int
    """Index of the row it duplicates; a later stage may have dropped that one in turn."""
    kept: int
    """Index of the row that stays for it in the end."""
    stage: Stage
    similarity: float
    """To `of`: 1 (exact), the smallest Jaccard index (fuzzy) or cosine (semantic) of a part."""

    def to_json(self, rows: Sequence[Conversation]) -> dict[str, Any]:
        """With the places of the rows."""
        ref = rows[self.row].ref
        return {
            "file": ref.file,
            "line": ref.line,
            "source": ref.source,
            "reason": "duplicate",
            "stage": self.stage,
            "similarity": round(self.similarity, 6),
            "duplicate_of": str(rows[self.of].ref),
            "kept": str(rows[self.kept].ref),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplicated:
    """Which rows stay, and why the others do not."""

    kept: list[int]
    """Indices, in order."""
    dropped: list[Duplicate]
    """In the order of their rows."""
    stages: dict[str, dict[str, Any]]
    """Of each stage that ran: rows looked at, dropped, clusters, rows of the largest one, seconds, settings."""

    def counts(self) -> dict[str, int]:
        """Dropped rows by stage."""
        return {name: stage["dropped"] for name, stage in self.stages.items()}


@dataclass(slots=True)
class _State:
    rows: Sequence[Conversation]
    views: Views
    rank: Callable[[int], tuple[float, ...]]
    left: list[int]
    found: dict[int, tuple[int, Stage, float]] = field(default_factory=dict)
    """Dropped row -> row it duplicates, stage, similarity."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


def deduplicate(
    rows: Sequence[Conversation],
    section: DedupSection,
    *,
    scores: Mapping[RowRef, float] | None = None,
) -> Deduplicated:
    """Find the duplicates among rows of all sources.

    Args:
        rows: In the order of the sources.
        section: `data.dedup`.
        scores: Of each row, for `keep: score`; the highest stays.

    Raises:
        DataError: `on` asks for a prompt or an answer, and rows are plain text.
        EnvironmentProblem: a library or model that a stage needs is missing.
    """
    refuse_without_prompt(rows, section.on)
    views = Views(rows, on=section.on, ignore=section.ignore, numbers=section.numbers)
    state = _State(rows, views, _ranking(rows, views, section.keep, scores), list(range(len(rows))))
    if section.exact:
        _exact(state)
    if section.fuzzy is not None:
        _fuzzy(state, section.fuzzy)
    if section.semantic is not None:
        _semantic(state, section.semantic, section.embedding_model)
    dropped = [
        Duplicate(row=row, of=of, kept=_final(row, state.found), stage=stage, similarity=similarity)
        for row, (of, stage, similarity) in sorted(state.found.items())
    ]
    return Deduplicated(kept=sorted(state.left), dropped=dropped, stages=state.stages)


def _ranking(
    rows: Sequence[Conversation],
    views: Views,
    keep: Literal["first", "longest", "score"],
    scores: Mapping[RowRef, float] | None,
) -> Callable[[int], tuple[float, ...]]:
    """Lower ranks stay; the first row wins a tie."""

    def rank(row: int) -> tuple[float, ...]:
        if keep == "score":
            assert scores is not None
            return -scores[rows[row].ref], row
        return (-views.length(row), row) if keep == "longest" else (row,)

    return rank


def _exact(state: _State) -> None:
    started = time.monotonic()
    with bar_for("exact duplicates", len(state.left), len(state.left)) as bar:
        clusters = equal_rows(state.views, state.left, bar.advance)
    dropped: dict[int, tuple[int, float]] = {}
    for members in clusters:
        first, *others = sorted(members, key=state.rank)
        dropped |= dict.fromkeys(others, (first, 1.0))
    _take_out(state, "exact", dropped, clusters=clusters, started=started)


def _fuzzy(state: _State, threshold: float) -> None:
    started = time.monotonic()
    bands, width = bands_for(threshold)
    with bar_for("sign", len(state.left), len(state.left)) as bar:
        fuzzy = Fuzzy(state.views, state.left, threshold, bar)
    with bar_for("compare", bands, len(state.left), "bands") as bar:
        clusters = list(fuzzy.clusters(bar).groups().values())
    dropped = _choose_all(state, clusters, fuzzy)
    _take_out(
        state, "fuzzy", dropped, clusters=clusters, started=started,
        threshold=threshold, bands=bands, rows_a_band=width, pairs_compared=fuzzy.compared,
    )  # fmt: skip


def _semantic(state: _State, threshold: float, model: str) -> None:
    started = time.monotonic()
    with bar_for("embed", len(state.left), len(state.left), "texts") as bar:
        semantic = Semantic(state.views, state.left, threshold, model, bar)
    with bar_for("compare", len(state.left), len(state.left)) as bar:
        clusters = list(semantic.clusters(bar).groups().values())
    dropped = _choose_all(state, clusters, semantic)
    _take_out(
        state, "semantic", dropped, clusters=clusters, started=started,
        threshold=threshold, embedding_model=model, pairs_compared=semantic.compared,
    )  # fmt: skip


def _choose_all(
    state: _State, clusters: Sequence[Sequence[int]], similar: Fuzzy | Semantic
) -> dict[int, tuple[int, float]]:
    """Rows to drop; the clusters hold places in `state.left`, the result rows."""
    dropped: dict[int, tuple[int, float]] = {}
    for members in clusters:
        chosen = choose(members, lambda place: state.rank(state.left[place]), similar)
        dropped |= {state.left[place]: (state.left[of], found) for place, (of, found) in chosen.items()}
    return dropped


def _take_out(
    state: _State,
    stage: Stage,
    dropped: Mapping[int, tuple[int, float]],
    *,
    clusters: Sequence[Sequence[int]],
    started: float,
    **settings: Any,
) -> None:
    """Record what a stage found."""
    looked_at = len(state.left)
    state.found |= {row: (of, stage, similarity) for row, (of, similarity) in dropped.items()}
    state.left = [row for row in state.left if row not in dropped]
    state.stages[stage] = {
        "rows": looked_at,
        "dropped": len(dropped),
        "clusters": len(clusters),
        "largest_cluster": max(map(len, clusters), default=1),
        "seconds": round(time.monotonic() - started, 3),
        **settings,
    }


def _final(row: int, found: Mapping[int, tuple[int, Stage, float]]) -> int:
    """The row that stays at the end of a chain of rows that duplicate each other."""
    while row in found:
        row = found[row][0]
    return row
