"""How far annotators agree beyond chance, and whether the place of an answer moves a choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

__all__ = ["binomial_p", "cohen_kappa", "krippendorff_alpha"]


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e): p_o the share of equal labels, p_e that expected of the margins.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960), 37-46.

    Args:
        first: Labels of one annotator.
        second: Labels of the other, of the same rows in the same order.

    Returns:
        1 for perfect agreement, 0 for that of chance; None without rows, or where chance alone agrees on all (both
        gave one and the same label throughout).
    """
    rows = len(first)
    if rows != len(second):
        raise ValueError(f"{rows} labels against {len(second)}")
    if not rows:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True))
    ours, theirs = Counter(first), Counter(second)
    expected = sum(ours[label] * theirs[label] for label in ours)  # times rows^2
    if expected == rows * rows:
        return None
    return (observed * rows - expected) / (rows * rows - expected)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal labels, any number of annotators, any labels missing: 1 - D_o / D_e.

    By the matrix of coincidences: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.

    Args:
        units: The labels each row got; rows with fewer than two count nothing.

    Returns:
        1 for perfect agreement, 0 for that of chance; None where nothing can be compared, or all labels are equal.
    """
    totals: Counter[Hashable] = Counter()
    disagreement = 0.0
    for labels in units:
        size = len(labels)
        if size < 2:
            continue
        counts = Counter(labels)
        totals += counts
        disagreement += (size * size - sum(count * count for count in counts.values())) / (size - 1)
    labels_in_all = sum(totals.values())
    expected = labels_in_all**2 - sum(count * count for count in totals.values())
    if not expected:
        return None
    return 1 - (labels_in_all - 1) * disagreement / expected


def binomial_p(successes: int, trials: int) -> float:
    """Two-sided exact binomial test against one half: twice the smaller tail, at most 1."""
    tail = min(successes, trials - successes)
    log_half = trials * math.log(0.5)
    terms = (
        math.exp(math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + log_half)
        for k in range(tail + 1)
    )
    return min(1.0, 2 * math.fsum(terms))
