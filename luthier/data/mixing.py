"""Which rows of each source one epoch uses: by `weight`, or by `share` of a mixture.

With shares p_i (they add up to 1) and sources of S_i tokens or rows (`data.mix.by`), a mixture of T in all takes T p_i
of source i:

    first_exhausted   T = min S_i / p_i    no row twice
    all_exhausted     T = max S_i / p_i    every row at least once
    largest_once      T = S_k / p_k        k: the source with the largest S
    size              T as given

A source gives whole passes over its rows, and of the rest those rows whose draws are smallest, until their sum is as
near to what is wanted as whole rows allow: so a source is off by at most half of one row. A row draws by its content
and the seed alone (copies by their number, too). Reordering rows changes nothing; of appended rows some come in, and
as much of the rows with the largest draws leaves, where T stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.split import draw, expand_by_weight
from luthier.recipe.schema import DataSection, MixSection
from luthier.runtime.errors import DataError, Problem

__all__ = ["Chosen", "choose_rows", "mix_lines", "mix_report", "mix_warnings", "passes"]

Integers = npt.NDArray[np.int64]
_TOLD_REPEATS = 4.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows of one epoch, as indices into the rows that can be used."""

    used: Integers
    """Source by source, pass by pass; a row that is repeated stands several times."""
    left_out: Integers
    """Rows that are not used, ascending."""


def passes(mix: MixSection, shares: Sequence[float], totals: Sequence[float]) -> list[float]:
    """How often each source is used: T p_i / S_i.

    Args:
        mix: `stop` and `size`.
        shares: Of each source; they add up to 1.
        totals: Tokens or rows of each source; all above 0.
    """
    fits = [total / share for total, share in zip(totals, shares, strict=True)]
    if mix.size is not None:
        whole = float(mix.size)
    elif mix.stop == "largest_once":
        whole = fits[max(range(len(totals)), key=lambda index: totals[index])]
    else:
        whole = min(fits) if mix.stop == "first_exhausted" else max(fits)
    return [whole / fit for fit in fits]


def choose_rows(
    section: DataSection,
    seed: int,
    *,
    sources: Integers,
    sizes: Callable[[str], Integers],
    hashes: Callable[[Integers], Sequence[str]],
) -> Chosen:
    """The rows that one epoch uses.

    Args:
        section: Weights or shares of its sources, and `mix`.
        seed: `train.seed`.
        sources: Source of each row that can be used.
        sizes: Of each row, in what it is given: `rows`, `tokens` or `trained_tokens`.
        hashes: Content hashes (`row_hash`) of the rows with these indices; only asked for where a part is taken.

    Raises:
        DataError: a source has nothing left to give its share, or its share is less than half of a row.
    """
    own = [np.flatnonzero(sources == index) for index in range(len(section.train))]
    if any(source.share is not None for source in section.train):
        return _chosen(_by_share(section, seed, own, sizes, hashes), len(sources))
    if all(source.weight == 1.0 for source in section.train):
        return Chosen(np.arange(len(sources)), np.zeros(0, np.int64))
    used = []
    for source, rows in zip(section.train, own, strict=True):
        keys = hashes(rows) if source.weight % 1.0 else None
        used.append(rows[expand_by_weight(len(rows), source.weight, seed, hashes=keys)])
    return _chosen(used, len(sources))


def _chosen(used: Sequence[Integers], rows: int) -> Chosen:
    together = np.concatenate([np.zeros(0, np.int64), *used])
    return Chosen(together, np.setdiff1d(np.arange(rows), together))


def _by_share(
    section: DataSection,
    seed: int,
    own: Sequence[Integers],
    sizes: Callable[[str], Integers],
    hashes: Callable[[Integers], Sequence[str]],
) -> list[Integers]:
    mix = section.mix or MixSection()
    every = sizes(mix.by)
    totals = [int(every[rows].sum()) for rows in own]
    problems = [
        _problem(section, index, "has no row left that could be used, so it cannot give its share")
        for index, total in enumerate(totals)
        if not total
    ]
    if problems:
        raise DataError(problems=problems)
    shares = [source.share or 0.0 for source in section.train]
    used = []
    for index, (rows, times) in enumerate(zip(own, passes(mix, shares, totals), strict=True)):
        taken = _take(every[rows], times * totals[index], lambda rows=rows: hashes(rows), seed)  # type: ignore[misc]
        if not len(taken):
            said = f"has share {shares[index]:g}, which is less than half of a row here"
            problems.append(_problem(section, index, said))
        used.append(rows[taken])
    if problems:
        raise DataError(problems=problems)
    return used


def _problem(section: DataSection, index: int, said: str) -> Problem:
    hint = "raise the share, choose `data.mix.stop: all_exhausted` or a `size`, or take the source out"
    return Problem(code="D247", message=f"source {index} {said}", file=section.train[index].path, hint=hint)


def _take(sizes: Integers, wanted: float, hashes: Callable[[], Sequence[str]], seed: int) -> Integers:
    """Indices of whole passes and of the rows of smallest draw that come nearest to the rest, each in file order."""
    total = int(sizes.sum())
    whole, rest = divmod(wanted, total)
    every = np.arange(len(sizes))
    if min(rest, total - rest) <= 1e-9 * total:  # a whole pass, but for rounding
        return np.tile(every, int(whole) + (rest * 2 > total))
    order = np.argsort(np.asarray(_draws(hashes(), seed)), kind="stable")
    reached = np.concatenate([[0], np.cumsum(sizes[order])])
    count = int(np.argmin(np.abs(reached - rest)))
    return np.concatenate([np.tile(every, int(whole)), np.sort(order[:count])])


def _draws(hashes: Sequence[str], seed: int) -> list[float]:
    """A number in [0, 1) for each row; equal rows have different ones."""
    seen: Counter[str] = Counter()
    draws = []
    for key in hashes:
        draws.append(draw(f"mix:{key}:{seen[key]}", seed))
        seen[key] += 1
    return draws


def mix_report(section: DataSection, *, sources: Integers, tokens: Integers, trained: Integers, chosen: Chosen,
               ) -> dict[str, Any]:  # fmt: skip
    """What each source gives to an epoch, for the manifest: wanted and achieved.

    Args:
        section: `data` of the recipe.
        sources: Source of each row that can be used.
        tokens: Of each row.
        trained: Trained tokens of each row.
        chosen: What was chosen of them.
    """
    has_shares = any(source.share is not None for source in section.train)
    mix = section.mix or MixSection()
    used = chosen.used
    whole = {"rows": len(used), "tokens": int(tokens[used].sum()), "trained_tokens": int(trained[used].sum())}
    listed = []
    for index, source in enumerate(section.train):
        own = used[sources[used] == index]
        got = {"rows": len(own), "tokens": int(tokens[own].sum()), "trained_tokens": int(trained[own].sum())}
        available = int((sources == index).sum())
        listed.append({
            "path": source.path, "share": source.share, "weight": None if has_shares else source.weight,
            "rows_available": available, "rows_different": len(np.unique(own)), **got,
            "times": len(own) / available if available else 0.0,
            "achieved": {name: got[name] / whole[name] if whole[name] else 0.0 for name in got},
        })  # fmt: skip
    how: dict[str, Any] = {"by": mix.by, "stop": None if mix.size is not None else mix.stop, "size": mix.size}
    return {**(how if has_shares else {}), **whole, "sources": listed}


def mix_lines(report: dict[str, Any]) -> list[str]:
    """One line for each source, where there are several or a share is wanted."""
    if len(report["sources"]) < 2:
        return []
    lines = []
    for source in report["sources"]:
        achieved = source["achieved"]
        wanted = f"wanted {source['share']:.1%} of {report['by'].replace('_', ' ')}; " if source["share"] else ""
        lines.append(
            f"mixture, {source['path']}: {wanted}got {achieved['rows']:.1%} of rows, {achieved['tokens']:.1%} of "
            f"tokens, {achieved['trained_tokens']:.1%} of trained tokens ({source['rows']:,} rows, "
            f"each {source['times']:.2f} times)"
        )
    return lines


def mix_warnings(report: dict[str, Any]) -> list[str]:
    """What a reader should know: shares that whole rows cannot reach, rows that are repeated often."""
    found = []
    for source in report["sources"]:
        got = source["achieved"][report["by"]] if source["share"] else None
        if got is not None and abs(got - source["share"]) > 0.01:
            found.append(f"{source['path']} has {got:.1%} of the mixture instead of {source['share']:.1%}: few rows")
        if source["times"] > _TOLD_REPEATS:
            found.append(f"each row of {source['path']} is used {source['times']:.1f} times an epoch")
    return found
