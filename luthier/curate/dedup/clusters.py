"""Sets of rows that hang together by pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Clusters"]


class Clusters:
    """Union-find over `n` rows. The name of a set is its smallest row, so it does not depend on the order of pairs."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, row: int) -> int:
        """Name of the set of a row."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(self, first: int, second: int) -> None:
        """Make the sets of two rows one."""
        first, second = self.find(first), self.find(second)
        self._parent[max(first, second)] = min(first, second)

    def apart(self, pairs: Any) -> Any:
        """Those of `pairs` [m, 2] whose rows are in different sets."""
        roots = np.fromiter(map(self.find, pairs.ravel().tolist()), np.int64, pairs.size).reshape(-1, 2)
        return pairs[roots[:, 0] != roots[:, 1]]

    def several(self, rows: Sequence[int]) -> bool:
        """Whether the rows are in more than one set."""
        first = self.find(rows[0])
        return any(self.find(row) != first for row in rows[1:])

    def groups(self) -> Mapping[int, list[int]]:
        """The sets with more than one row, by name; rows in order."""
        found: dict[int, list[int]] = {}
        for row in range(len(self._parent)):
            found.setdefault(self.find(row), []).append(row)
        return {name: rows for name, rows in found.items() if len(rows) > 1}
