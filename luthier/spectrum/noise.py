"""What the singular values of pure noise look like: the Marchenko-Pastur law, its median, its edge.

W is n x m, n <= m, with independent entries of standard deviation s; beta = n / m. Then s_i^2 / (s^2 m) follows the
Marchenko-Pastur law on [(1 - sqrt(beta))^2, (1 + sqrt(beta))^2], whatever the distribution of the entries, as long
as their fourth moment is finite. No torch.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

__all__ = ["SMALLEST_SIDE", "edge", "mp_median", "noise_std"]

TRACY_WIDOM_99 = 2.0234
"""99% quantile of the Tracy-Widom law for real matrices (beta = 1): Bornemann, arXiv:0904.1581, and tables since."""
SMALLEST_SIDE = 16
"""Of a matrix with fewer singular values the median says too little about the noise
(`tests/spectrum/test_noise.py` measures it)."""
_POINTS = 20_001


@cache
def mp_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law, in units of s^2 m. 0 < beta <= 1.

    With x = 1 + beta - 2 sqrt(beta) cos t the distribution function is
    2 / pi * integral_0^t sin^2 u / (1 + beta - 2 sqrt(beta) cos u) du: smooth, so the trapezoidal rule will do.
    Gavish and Donoho, arXiv:1305.5870, section III.E: sigma = median(S) / sqrt(m mu_beta).
    """
    root = math.sqrt(beta)
    t = np.linspace(0.0, math.pi, _POINTS)
    below = 1.0 + beta - 2.0 * root * np.cos(t)
    density = np.full(_POINTS, 2.0 / math.pi)  # the limit at t = 0 for beta = 1
    np.divide(2.0 / math.pi * np.sin(t) ** 2, below, out=density, where=below > 1e-12)
    steps = (density[1:] + density[:-1]) / 2.0 * np.diff(t)
    share = np.concatenate([[0.0], np.cumsum(steps)])
    middle = float(np.interp(0.5 * share[-1], share, t))
    return 1.0 + beta - 2.0 * root * math.cos(middle)


def noise_std(median: float, n: int, m: int) -> float:
    """Standard deviation s of the noise entries, from the median singular value: half of the values may be signal."""
    n, m = min(n, m), max(n, m)
    return median / math.sqrt(m * mp_median(n / m))


def edge(std: float, n: int, m: int) -> float:
    """Singular value that the largest one of an n x m noise matrix stays below in 99 of 100 matrices.

    s_1^2 / s^2 = mu + sigma TW with mu = (sqrt(m - 1) + sqrt(n))^2 and
    sigma = (sqrt(m - 1) + sqrt(n)) (1 / sqrt(m - 1) + 1 / sqrt(n))^(1/3): Johnstone 2001, Annals of Statistics 29 (2).
    """
    n, m = min(n, m), max(n, m)
    if m < 2:
        return std * TRACY_WIDOM_99
    root_m, root_n = math.sqrt(m - 1), math.sqrt(n)
    middle = (root_m + root_n) ** 2
    width = (root_m + root_n) * (1.0 / root_m + 1.0 / root_n) ** (1.0 / 3.0)
    return std * math.sqrt(middle + TRACY_WIDOM_99 * width)
