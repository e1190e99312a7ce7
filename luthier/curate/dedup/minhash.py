"""MinHash signatures, and bands of them as a net that catches similar rows (LSH).

Broder, On the resemblance and containment of documents (1997); Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, chapter 3. Whatever the net catches is compared in full afterwards (`fuzzy.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from luthier.curate.dedup.shingles import shingle_hashes
from luthier.runtime.errors import EnvironmentProblem

__all__ = ["BYTES_A_ROW", "FOUND", "PERMUTATIONS", "bands_for", "found_share", "signatures"]

PERMUTATIONS = 128
BYTES_A_ROW = 4 * PERMUTATIONS
FOUND = 0.995
"""Least probability that a pair exactly at the threshold is caught; pairs above it are caught more surely."""

_SEED = 42
_ROWS_AT_ONCE = 2_000


def found_share(similarity: float, bands: int, rows: int) -> float:
    """Probability that two rows of a Jaccard index share a band: 1 - (1 - s^r)^b."""
    return float(1 - (1 - similarity**rows) ** bands)


def bands_for(threshold: float) -> tuple[int, int]:
    """Number of bands and values in each: as long as possible, so that little is compared in vain, but `FOUND`."""
    choices = ((PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS, 0, -1))
    return next(choice for choice in choices if found_share(threshold, *choice) >= FOUND or choice[1] == 1)


def signatures(parts: Iterator[Sequence[str]], n: int, advance: Callable[[int], None] = lambda count: None) -> Any:
    """MinHash signatures [n, 128], uint32, of the shingles of `n` rows; rows without any have the largest values.

    Raises:
        EnvironmentProblem: rensa is not installed.
    """
    try:
        import rensa
    except ImportError as error:
        raise EnvironmentProblem(
            code="R720", message="fuzzy duplicates need rensa", hint='pip install "luthier[data]"'
        ) from error
    result = np.empty((n, PERMUTATIONS), np.uint32)
    done = 0
    while rows := list(islice(parts, _ROWS_AT_ONCE)):
        hashes, offsets = shingle_hashes(rows)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), PERMUTATIONS, _SEED
        )
        result[done : done + len(rows)] = matrix.to_rows()
        done += len(rows)
        advance(len(rows))
    return result
