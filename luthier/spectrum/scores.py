"""Two scores of a matrix, from its singular values S_1 >= S_2 >= ... alone. No torch.

compat       what the original script computes (cognitivecomputations/spectrum, `spectrum.py`, commit 0ed1756):
             sigma = (q75(S) - q25(S)) / 1.349, threshold = sigma (1 + sqrt(beta)), beta = shorter / longer side;
             score = (sum of S above / sum of S below) / S_1, the lower sum 1 where nothing is below.
calibrated   the estimated share of the matrix' energy that is signal: sum of x_i^2 / sum of S_i^2, where only
             singular values above the edge of the noise count, shrunk to what they were before noise was added.

The shrinkage inverts y(x) = sqrt((x + 1/x) (x + beta/x)), the singular value y at which a signal of singular value x
appears under noise (both in units of s sqrt(m)): Benaych-Georges and Nadakuditi, arXiv:1103.2221, as in Gavish and
Donoho, arXiv:1405.7511, equation (9): x^2 = (y^2 - beta - 1 + sqrt((y^2 - beta - 1)^2 - 4 beta)) / 2.

Why this one: between 0 and 1 for every matrix (no infinity: a matrix without noise has 1, zeros have 0); W and c W
score alike, and W and its transpose; a stronger planted signal never lowers it; pure noise has 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.spectrum.noise import SMALLEST_SIDE, edge, noise_std

__all__ = ["Calibrated", "calibrated", "compat", "compat_threshold"]

Values = np.ndarray[Any, np.dtype[np.float64]]


def compat_threshold(values: Values, n: int, m: int) -> float:
    """The original's threshold between noise and signal."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low) / 1.349 * (1.0 + math.sqrt(min(n, m) / max(n, m)))


def compat(values: Values, n: int, m: int) -> float:
    """The original's score of one matrix; `values` descending. 0 for a matrix of zeros, where the original has NaN."""
    if values[0] == 0.0:
        return 0.0
    above = values > compat_threshold(values, n, m)
    signal, noise = float(values[above].sum()), float(values[~above].sum()) if not above.all() else 1.0
    # All that is below may be exact zeros: the original divides by 0 and writes Infinity.
    return signal / (noise if noise > 0.0 else 1.0) / float(values[0])


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the calibrated score found in one tensor (all experts of a stacked one together)."""

    score: float
    """Share of the energy that is signal, 0 to 1."""
    rank: int
    """Singular values above the edge."""
    noise_std: float
    """Of the entries; the mean over stacked matrices."""
    signal_energy: float
    """Estimated squared Frobenius norm of the signal."""


def calibrated(stack: Sequence[Values], n: int, m: int) -> Calibrated | None:
    """The calibrated score of one matrix, or of several n x m matrices in one tensor; values descending.

    None where the shorter side has fewer than `SMALLEST_SIDE` values: the noise cannot be told from them.
    """
    n, m = min(n, m), max(n, m)
    if n < SMALLEST_SIDE:
        return None
    rank, signal, energy, stds = 0, 0.0, 0.0, []
    for values in stack:
        std = noise_std(float(np.median(values)), n, m)
        above = values[values > edge(std, n, m)]
        signal += float((_before_noise(above, std, n, m) ** 2).sum())
        energy += float((values**2).sum())
        rank += len(above)
        stds.append(std)
    score = min(1.0, signal / energy) if energy > 0.0 else 0.0
    return Calibrated(score, rank, float(np.mean(stds)), signal)


def _before_noise(values: Values, std: float, n: int, m: int) -> Values:
    """Singular values of the signal, from those observed above the edge."""
    unit, beta = std**2 * m, n / m
    centred = values**2 - (1.0 + beta) * unit  # not divided by the unit, which may be 0
    squares = (centred + np.sqrt(np.maximum(centred**2 - 4.0 * beta * unit**2, 0.0))) / 2.0
    found: Values = np.sqrt(np.maximum(squares, 0.0))
    return found
