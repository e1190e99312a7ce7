"""Progress of the stages, for sets that take more than a moment."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from luthier.runtime.console import Bar, progress

__all__ = ["bar_for"]

_QUICK_ROWS = 20_000


def bar_for(label: str, total: int, rows: int, unit: str = "rows") -> AbstractContextManager[Bar]:
    """A bar for `total` units of work on `rows` rows; one that shows nothing if they are few."""
    return nullcontext(Bar(label, total, unit)) if rows <= _QUICK_ROWS else progress(label, total, unit)
