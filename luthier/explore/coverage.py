"""How well the training rows cover the test rows: each test row with the training row that is nearest to it.

A test row is *uncovered* if it is farther from every training row than 95% of the training rows are from the training
row nearest to them. If test and training rows are of one kind, about 5% are, by construction; more says that training
does not know the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.explore.neighbours import nearest

__all__ = ["Coverage", "coverage", "coverage_by_cluster"]

_SHARE = 95
_REFERENCE_ROWS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Distances of test rows to the training rows."""

    tests: Any
    """[t] indices of the test rows."""
    nearest: Any
    """[t] index of the training row nearest to each."""
    distance: Any
    """[t] float32: 1 - cosine."""
    threshold: float
    """Above it a test row is uncovered."""
    reference_rows: int
    """Training rows that the threshold was taken from."""

    @property
    def uncovered(self) -> Any:
        """[t] bool."""
        return self.distance > self.threshold


def coverage(values: Any, train: Any, tests: Any, *, seed: int) -> Coverage | None:
    """Coverage of `tests` by `train`; None where there are no test rows, or fewer than two training rows.

    Args:
        values: [n, d] vectors of length 1.
        train: Indices of training rows.
        tests: Indices of test rows.
        seed: Which training rows the threshold is taken from, when there are many.
    """
    if len(tests) == 0 or len(train) < 2:
        return None
    known = values[train]
    near, distance = nearest(values[tests], known, 1, label="coverage of the test rows")
    chosen = np.sort(np.random.default_rng(seed).choice(len(train), min(len(train), _REFERENCE_ROWS), replace=False))
    # Two neighbours: the first is the row itself, or a copy of it at the same place.
    others, apart = nearest(known[chosen], known, 2, label="distances among training rows")
    own = np.where(others[:, 0] == chosen, apart[:, 1], apart[:, 0])
    return Coverage(
        tests=np.asarray(tests), nearest=np.asarray(train)[near[:, 0]], distance=distance[:, 0],
        threshold=float(np.percentile(own, _SHARE)), reference_rows=len(chosen),
    )  # fmt: skip


def coverage_by_cluster(found: Coverage, of: Any, labels: Sequence[str], train: Any) -> list[dict[str, Any]]:
    """One entry for each cluster with test rows, the one with most uncovered rows first.

    Keys: `cluster`, `label`, `train` and `test` (rows), `uncovered` (test rows), `share` of the cluster's test rows,
    `distance` (median of its test rows).
    """
    entries = []
    trained = np.bincount(of[train], minlength=len(labels))
    for index, label in enumerate(labels):
        mine = of[found.tests] == index
        if mine.any():
            entries.append({
                "cluster": index, "label": label, "train": int(trained[index]), "test": int(mine.sum()),
                "uncovered": int(found.uncovered[mine].sum()), "share": float(found.uncovered[mine].mean()),
                "distance": float(np.median(found.distance[mine])),
            })  # fmt: skip
    return sorted(entries, key=lambda entry: (-entry["uncovered"], -entry["distance"], entry["cluster"]))
