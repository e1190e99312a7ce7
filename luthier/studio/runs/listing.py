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
    complete = index.refresh(wait=_wait(index))
    words = asked.q.lower().split()
    found = [known for known in index.lines() if _holds(known, words, asked)]
    counts = Counter(known.line["status"] for known in found)
    tags = sorted({tag for known in found for tag in known.line["tags"]})
    if asked.status:
        found = [known for known in found if known.line["status"] in asked.status]
    lines = _ordered([known.line for known in found], _SORTS[name], descending=asked.sort.startswith("-"))
    return {
        "total": len(lines), "offset": asked.offset, "limit": asked.limit, "counts": dict(counts), "tags": tags,
        "runs": lines[asked.offset : asked.offset + asked.limit], "damaged": index.damaged, "working": not complete,
    }  # fmt: skip


def _wait(index: Index) -> float:
    """A small folder is looked at before the answer, so that a run just started is in it."""
    return 0.05 if len(index.lines()) > 500 else 0.5


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
    """In order, equal ones by name; those without a value last both ways."""
    lines = sorted(lines, key=lambda line: line["name"])
    known = [line for line in lines if key(line) is not None]
    known.sort(key=key, reverse=descending)
    return known + [line for line in lines if key(line) is None]
