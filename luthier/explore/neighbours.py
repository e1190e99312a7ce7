"""Nearest rows by cosine, exactly (scikit-learn's blocked brute force), and what follows from their distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from luthier.explore.needs import need
from luthier.runtime.console import progress

__all__ = ["far_out", "nearest"]

_CHUNK = 4_096
_SECONDS_OF_WORK = 5e8


def nearest(queries: Any, among: Any, count: int, *, same: bool = False, label: str = "") -> tuple[Any, Any]:
    """Indices and cosine distances (1 - cosine) of the nearest rows, nearest first.

    Args:
        queries: [q, d] float32 of length 1 (or 0).
        among: [n, d].
        count: Neighbours of each; fewer where there are not as many rows.
        same: `queries` are `among`, and a row is no neighbour of itself.
        label: Shown beside a progress bar when there are many rows.

    Returns:
        [q, count] int64 and [q, count] float32. A row of length 0 has distance 1 to every row.

    Raises:
        EnvironmentProblem: scikit-learn is missing.
    """
    count = min(count, len(among) - int(same))
    index = need("sklearn.neighbors", "the map").NearestNeighbors(
        n_neighbors=count + int(same), algorithm="brute", metric="sqeuclidean"
    )
    index.fit(among)
    found: list[Any] = []
    distances: list[Any] = []
    with _bar(label, len(queries) * len(among)) as advance:
        for start in range(0, len(queries), _CHUNK):
            part = queries[start : start + _CHUNK]
            near = index.kneighbors(part, return_distance=False)
            if same:
                near = _without_self(near, np.arange(start, start + len(part)))
            cosine = np.einsum("qd,qkd->qk", part, among[near])
            order = np.argsort(-cosine, axis=1, kind="stable")
            found.append(np.take_along_axis(near, order, axis=1))
            distances.append(np.clip(1.0 - np.take_along_axis(cosine, order, axis=1), 0.0, 2.0))
            advance(len(part) * len(among))
    return np.concatenate(found).astype(np.int64), np.concatenate(distances).astype(np.float32)


@contextmanager
def _bar(label: str, pairs: int) -> Iterator[Callable[[float], None]]:
    """Progress of what takes more than a few seconds."""
    if pairs < _SECONDS_OF_WORK or not label:
        yield lambda done: None
        return
    with progress(label, 100, "%") as bar:
        yield lambda done: bar.advance(100 * done / pairs)


def _without_self(near: Any, own: Any) -> Any:
    """Take out the row itself; among copies it may not be there, then the last one goes."""
    hit = near == own[:, None]
    hit[~hit.any(axis=1), -1] = True
    return near[~hit].reshape(len(near), -1)


def far_out(scores: Any) -> float:
    """Tukey's fence: the third quartile and 1.5 times the distance between the quartiles; above it is an outlier."""
    low, high = np.percentile(scores, [25, 75])
    return float(high + 1.5 * (high - low))
