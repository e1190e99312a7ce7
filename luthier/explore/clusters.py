"""Groups of rows that are alike, and the words that set each apart.

The number of clusters is the one with the highest mean silhouette (cosine; Rousseeuw, 1987) of a sample, among a fixed
list; k-means on vectors of length 1. A label is made of the words with the highest class TF-IDF (as BERTopic's,
Grootendorst, 2022, here over rows): share of the cluster's rows with the word x log(1 + mean size of a cluster / rows
with the word). Words that all rows have score near nothing, so no list of stop words is needed, in any language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.explore.needs import need

__all__ = ["Clusters", "find_clusters"]

_CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40)
_FITTED_ROWS = 20_000
_SCORED_ROWS = 2_000
_LEAST_ROWS = 5
_STARTS = 3
_TERMS = 8
_IN_LABEL = 3
_SAME_STEM = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Which rows belong together."""

    of: Any
    """[n] int32: cluster of each row; 0 is the largest."""
    labels: list[str]
    terms: list[list[str]]
    """Of each cluster the words that set it apart, best first."""
    silhouette: dict[int, float]
    """Mean silhouette of each number of clusters that was tried."""
    sample: int
    """Rows whose silhouette was taken."""


def find_clusters(
    values: Any, counts: Any, vocabulary: Sequence[str], *, seed: int, clusters: int | None = None
) -> Clusters:
    """Clusters of rows with labels.

    Args:
        values: [n, d] vectors of length 1.
        counts: [n, w] sparse counts of words.
        vocabulary: Their words.
        seed: Of the starts of k-means and of the sample.
        clusters: How many; None: decided by the silhouette.

    Raises:
        EnvironmentProblem: scikit-learn is missing.
    """
    cluster = need("sklearn.cluster", "the map")
    metrics = need("sklearn.metrics", "the map")
    draws = np.random.default_rng(seed)
    n = len(values)
    fitted = values[np.sort(draws.choice(n, min(n, _FITTED_ROWS), replace=False))]
    scored = fitted[np.sort(draws.choice(len(fitted), min(len(fitted), _SCORED_ROWS), replace=False))]
    tried = [clusters] if clusters else [k for k in _CANDIDATES if k * _LEAST_ROWS <= n] or [1]
    best, found, silhouette = -2.0, None, {}
    for k in tried:
        model = cluster.KMeans(min(k, n), n_init=_STARTS, random_state=seed).fit(fitted)
        names = model.predict(scored)
        many = 1 < len(np.unique(names)) < len(scored)
        score = float(metrics.silhouette_score(scored, names, metric="cosine")) if many else -1.0
        silhouette[k] = score
        if score > best:
            best, found = score, model
    assert found is not None
    names = found.predict(values)
    sizes = np.bincount(names, minlength=found.n_clusters)
    order = np.lexsort((np.arange(len(sizes)), -sizes))
    order = order[sizes[order] > 0]
    rank = np.zeros(len(sizes), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    of = rank[names]
    terms = _terms(of, counts, vocabulary, len(order))
    labels = [", ".join(own[:_IN_LABEL]) or f"cluster {index + 1}" for index, own in enumerate(terms)]
    return Clusters(of=of, labels=labels, terms=terms, silhouette=silhouette, sample=len(scored))


def _terms(of: Any, counts: Any, vocabulary: Sequence[str], clusters: int) -> list[list[str]]:
    sparse = need("scipy.sparse", "the map")
    there = counts.copy()
    there.data = np.ones_like(there.data)
    member = sparse.csr_matrix((np.ones(len(of), np.float32), (of, np.arange(len(of)))), shape=(clusters, len(of)))
    rows = np.asarray((member @ there).todense())
    sizes = np.bincount(of, minlength=clusters)[:, None]
    score = rows / sizes * np.log1p((len(of) / clusters) / np.maximum(rows.sum(axis=0), 1.0))
    found = []
    for own, mine in zip(score, rows, strict=True):
        chosen: list[str] = []
        for place in np.lexsort((np.arange(len(own)), -own)):
            word = vocabulary[place]
            if len(chosen) == _TERMS or not mine[place]:
                break
            if len(word) > 1 and not any(_same(word, other) for other in chosen):
                chosen.append(word)
        found.append(chosen)
    return found


def _same(first: str, second: str) -> bool:
    """`apple` and `apples`, `paint` and `painted` say the same in a label."""
    size = min(len(first), len(second), _SAME_STEM)
    return first[:size] == second[:size] and size >= min(_SAME_STEM, 4)
