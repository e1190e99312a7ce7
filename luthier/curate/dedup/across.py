"""Near-duplicates across the border between training and validation rows.

A validation row that training has nearly seen says nothing about new rows. Numbers do not count here: a problem
with other numbers is another problem to learn, but no new one to be measured with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from luthier.curate.dedup.clusters import Clusters
from luthier.curate.dedup.fuzzy import Fuzzy
from luthier.curate.dedup.minhash import bands_for
from luthier.curate.dedup.shown import bar_for
from luthier.curate.dedup.views import Views
from luthier.curate.text import On, refuse_without_prompt
from luthier.data.types import Conversation

__all__ = ["groups_of_near_duplicates", "near_held_out_rows"]


def groups_of_near_duplicates(
    rows: Sequence[Conversation], threshold: float, *, on: On, ignore: Collection[str]
) -> list[list[int]]:
    """Clusters of two or more near-duplicates (indices in order), exact ones among them.

    Args:
        rows: Any rows.
        threshold: Least Jaccard index.
        on: What is compared.
        ignore: Differences that do not count.

    Raises:
        EnvironmentProblem: rensa is not installed.
    """
    return list(_clusters(rows, threshold, on, ignore)[1].groups().values())


def near_held_out_rows(
    held_out: Sequence[Conversation],
    train: Sequence[Conversation],
    threshold: float,
    *,
    on: On,
    ignore: Collection[str],
) -> dict[int, tuple[int, float]]:
    """Training rows that are near-duplicates of a held-out row.

    Returns:
        For each such training row the held-out row it is most similar to, and their similarity; by indices.

    Raises:
        EnvironmentProblem: rensa is not installed.
    """
    fuzzy, clusters = _clusters([*held_out, *train], threshold, on, ignore)
    found: dict[int, tuple[int, float]] = {}
    for members in clusters.groups().values():
        held = [row for row in members if row < len(held_out)]
        for row in members[len(held) :] if held else ():
            similarities = {other: fuzzy.similarity(row, other) for other in fuzzy.promising(row, held)}
            best = max(similarities, key=lambda other: (similarities[other], -other), default=None)
            if best is not None and similarities[best]:
                found[row - len(held_out)] = best, similarities[best]
    return found


def _clusters(
    rows: Sequence[Conversation], threshold: float, on: On, ignore: Collection[str]
) -> tuple[Fuzzy, Clusters]:
    refuse_without_prompt(rows, on)
    views = Views(rows, on=on, ignore=ignore, numbers="any")
    with bar_for("sign", len(rows), len(rows)) as bar:
        fuzzy = Fuzzy(views, range(len(rows)), threshold, bar)
    with bar_for("compare", bands_for(threshold)[0], len(rows), "bands") as bar:
        return fuzzy, fuzzy.clusters(bar)
