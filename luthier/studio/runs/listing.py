"""Pages of the list: filter, sort, cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.runtime.errors import RecipeError
from luthier.studio.runs.index import Index, Known

__all__ = ["Asked", "listing"]

_SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    name: (lambda line, name=name: line[name])
    for name in (
        "started_at", "finished_at", "updated_at", "name", "status", "base", "method", "loss", "eval_loss",
        "tokens_per_second", "peak_bytes", "seconds",
    )
} | {
    "steps": lambda line: line["step"],
    "delta": lambda line: (line["headline"] or {}).get("delta"),
    "score": lambda line: (line["score"] or {}).get("value"),
}  # fmt: skip


_SMALL = 500
"""So many runs are looked at before an answer, so that one just started is in it."""
_KEPT = 64
"""Orders that are remembered: the next page of the same question is a cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a page of the list is asked for with."""

    offset: int = 0
    limit: int = 50
    q: str = ""
    status: tuple[str, ...] = ()
    sort: str = "-updated_at"
    pinned: bool = False
    tag: str = ""


def listing(index: Index, asked: Asked) -> dict[str, Any]:
    """One page.

    Raises:
        RecipeError: W103: no such order.
    """
    name = asked.sort.removeprefix("-")
    if name not in _SORTS:
        raise RecipeError(code="W103", message=f"sort must be one of {', '.join(_SORTS)}; got {asked.sort[:40]!r}")
    complete = index.refresh(wait=0.0 if len(index.lines()) > _SMALL else 0.5)
    key = (asked.q, asked.status, asked.sort, asked.pinned, asked.tag)
    known = index.orders.get(key)
    if known is None or known[0] != index.version:
        if len(index.orders) >= _KEPT:
            index.orders.clear()
        known = index.orders[key] = _found(index, asked, _SORTS[name])
    _, lines, counts, tags = known
    return {
        "total": len(lines), "offset": asked.offset, "limit": asked.limit, "counts": counts, "tags": tags,
        "runs": lines[asked.offset : asked.offset + asked.limit], "damaged": index.damaged, "working": not complete,
    }  # fmt: skip


def _found(
    index: Index, asked: Asked, key: Callable[[dict[str, Any]], Any]
) -> tuple[int, list[dict[str, Any]], dict[str, int], list[str]]:
    """Version of the index, lines in order, counts by status before the choice of one, tags."""
    version, words = index.version, asked.q.lower().split()
    found = [known.line for known in index.lines() if _holds(known, words, asked)]
    counts = dict(Counter(line["status"] for line in found))
    tags = sorted({tag for line in found for tag in line["tags"]})
    if asked.status:
        found = [line for line in found if line["status"] in asked.status]
    return version, _ordered(found, key, descending=asked.sort.startswith("-")), counts, tags


def _holds(known: Known, words: list[str], asked: Asked) -> bool:
    line = known.line
    if asked.pinned and not line["pinned"]:
        return False
    if asked.tag and asked.tag not in line["tags"]:
        return False
    return all(word in known.words for word in words)


def _ordered(
    lines: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any], *, descending: bool
) -> list[dict[str, Any]]:  # fmt: skip
    """In order, equal ones by name (as they come); those without a value last both ways."""
    known = [line for line in lines if key(line) is not None]
    known.sort(key=key, reverse=descending)
    return known + [line for line in lines if key(line) is None]
