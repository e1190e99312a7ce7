"""Vectors -> places in the plane: rows that are alike stand together.

`graph`: the k-nearest-neighbour graph drawn with UMAP's attraction and repulsion (McInnes, Healy, Melville, 2018,
  with a = 1.577, b = 0.895, its values for min_dist 0.1), by plain stochastic gradient steps over whole arrays: in each
  epoch every row is pulled to one random neighbour and pushed from a few random rows. It begins with the first two
  principal components. Of many rows, 1,000 landmarks are drawn first, in this way and by themselves; then every row
  starts between the landmarks that are nearest to it. Without that, what belongs together in the large is torn apart:
  the graph of many rows holds near-copies only. All randomness comes from the seed.
`umap`: the umap-learn library itself, when installed.

How well a picture keeps neighbourhoods is measured in `quality`, and stated on the page.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

from luthier.explore.needs import need
from luthier.explore.neighbours import nearest
from luthier.runtime.console import progress

__all__ = ["NEIGHBOURS", "principal_plane", "project", "quality"]

NEIGHBOURS = 15
_A, _B = 1.577, 0.895
_PUSHES = 5
_LONGEST_STEP = 4.0
_SPREAD = 3.0
_EPOCHS = 800
_LANDMARKS, _ANCHORS, _LEAST_ROOM = 1_000, 3, 3.0
_LONG = 20_000
# Epochs and first step from landmarks: of many rows, of few.
_REFINING = {True: (200, 0.5), False: (600, 1.0)}


def project(values: Any, near: Any, *, seed: int, method: str = "graph") -> Any:
    """[n, 2] float32.

    Args:
        values: [n, d] float32 vectors.
        near: [n, k] indices of the nearest neighbours.
        seed: Decides every draw.
        method: `graph` or `umap`.

    Raises:
        EnvironmentProblem: `umap` without umap-learn.
    """
    if method == "umap":
        umap = need("umap", "--projection umap")
        fitted = umap.UMAP(n_neighbors=NEIGHBOURS, metric="cosine", random_state=seed, n_jobs=1).fit_transform(values)
        return np.asarray(fitted, np.float32)
    draws = np.random.default_rng(seed)
    if len(values) <= _LANDMARKS:
        return _from_plane(values, near, draws)
    chosen = np.sort(draws.choice(len(values), _LANDMARKS, replace=False))
    marks = values[chosen]
    own, _ = nearest(marks, marks, NEIGHBOURS, same=True)
    drawn = _from_plane(marks, own, draws)
    anchors, distance = nearest(values, marks, _ANCHORS)
    weight = 1 / (distance + 0.01)
    weight /= weight.sum(axis=1, keepdims=True)
    start = (drawn[anchors] * weight[:, :, None]).sum(axis=1)
    start = start * max(_LEAST_ROOM, 0.6 * (len(values) / _LANDMARKS) ** 0.5)
    start = start + draws.normal(0.0, 0.05, start.shape)
    epochs, first = _REFINING[len(values) > _LONG]
    return _draw(start.astype(np.float32), near, draws, epochs=epochs, first=first)


def _from_plane(values: Any, near: Any, draws: Any) -> Any:
    plane = principal_plane(values)
    spread = plane.std(axis=0).max() or 1.0
    # Equal rows must not stand on one point: no force can part them.
    start = plane / spread * _SPREAD + draws.normal(0.0, 1e-2, plane.shape)
    return _draw(start.astype(np.float32), near, draws, epochs=_EPOCHS, first=1.0)


def principal_plane(values: Any) -> Any:
    """[n, 2]: the first two principal components, signs fixed."""
    centred = values - values.mean(axis=0, keepdims=True)
    _, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred.astype(np.float64))
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1.0, 1.0)
    plane = np.zeros((len(values), 2))
    plane[:, : axes.shape[1]] = centred @ axes
    return plane


def _draw(places: Any, near: Any, draws: Any, *, epochs: int, first: float) -> Any:
    """Pull along the edges of the graph, taken both ways; push from random rows. The step shrinks from `first` to 0."""
    n = len(places)
    origin = np.repeat(np.arange(n), near.shape[1])
    head, tail = np.concatenate([origin, near.ravel()]), np.concatenate([near.ravel(), origin])
    order = np.argsort(head, kind="stable")
    head, tail = head[order], tail[order]
    begin, degree = np.searchsorted(head, np.arange(n)), np.bincount(head, minlength=n)
    with progress("draw the map", epochs, "epochs") if n > _LONG else nullcontext() as bar:
        for epoch in range(epochs):
            chosen = tail[begin + (draws.random(n, dtype=np.float32) * degree).astype(np.int64).clip(max=degree - 1)]
            gap = places - places[chosen]
            square = (gap * gap).sum(axis=1, keepdims=True)
            pull = -2 * _A * _B * np.power(square + 1e-6, _B - 1) / (1 + _A * np.power(square, _B))
            step = np.clip(pull * gap, -_LONGEST_STEP, _LONGEST_STEP)
            for _ in range(_PUSHES):
                gap = places - places[draws.integers(n, size=n)]
                square = (gap * gap).sum(axis=1, keepdims=True)
                push = 2 * _B / ((1e-3 + square) * (1 + _A * np.power(square, _B)))
                step += np.clip(push * gap, -_LONGEST_STEP, _LONGEST_STEP)
            places = places + np.float32(first * (1 - epoch / epochs)) * step
            if bar is not None:
                bar.advance()
    return places.astype(np.float32)


def quality(values: Any, places: Any, *, seed: int, count: int = 10, sample: int = 500) -> dict[str, float]:
    """How well the picture keeps neighbourhoods.

    trustworthiness: 1 - 2 / (m k (2n - 3k - 1)) x sum over the k nearest in the picture of max(0, r - k), r being their
      rank by cosine among all rows (Venna and Kaski, 2001; `sklearn.manifold.trustworthiness` for m = n). 1 is perfect.
    kept: share of the k nearest in the picture that are among the k nearest by cosine.

    Args:
        values: [n, d] vectors.
        places: [n, 2].
        seed: Which m rows are asked.
        count: k.
        sample: m, at most.

    Returns:
        `trustworthiness`, `kept`, `k`, `rows` (m).
    """
    n = len(values)
    count = min(count, (n - 1) // 2)
    asked = np.sort(np.random.default_rng(seed).choice(n, min(sample, n), replace=False))
    lost = kept = 0.0
    for row in asked:
        flat = ((places - places[row]) ** 2).sum(axis=1)
        flat[row] = np.inf
        near = np.argpartition(flat, count - 1)[:count]
        far = -(values @ values[row])
        far[row] = -np.inf
        rank = (far[None, :] < far[near][:, None]).sum(axis=1)
        lost += np.maximum(rank - count, 0).sum()
        kept += (rank <= count).sum()
    trust = 1 - 2 * lost / (len(asked) * count * (2 * n - 3 * count - 1))
    return {"trustworthiness": float(trust), "kept": float(kept / (len(asked) * count)), "k": count,
            "rows": len(asked)}  # fmt: skip
