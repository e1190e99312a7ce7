"""What happened to rows on the way from file to tokens: counted over all of them, listed for the first ones.

Bounded: a set of any size leaves the same few lists.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from luthier.data.mask import WAYS_OUT
from luthier.data.tokenize import Tokenized
from luthier.data.types import Dropped, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError, Problem

__all__ = ["Tally"]

_LISTED_ROWS = 10_000
_LISTED_PROBLEMS = 50
_CODES = {"overlong": "D220", "empty": "D221", "equal": "D219", "unprovable": "D222", "control_token": "D223"}
_HINTS = {
    "overlong": "raise `data.max_length`, or choose `data.overlong: drop` or `truncate`",
    "empty": "mend the row, or leave such rows out with `data.on_empty: drop`",
    "equal": "mend the row, or leave such rows out with `data.on_empty: drop`",
    "unprovable": WAYS_OUT,
    "control_token": "mend the row, or encode such tokens as text with `data.control_tokens: text`",
}


@dataclass(slots=True)
class Tally:
    """Counts of one preparation."""

    section: DataSection
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that are not used, by reason."""
    dropped_rows: list[Dropped] = field(default_factory=list)
    """The first of them."""
    by_source: Counter[str] = field(default_factory=Counter)
    """The same, by `SOURCE:reason`; SOURCE counts the sources as `RowRef.source` does."""
    truncated: int = 0
    truncated_rows: list[tuple[RowRef, str]] = field(default_factory=list)
    """The first of them, and from how many tokens to how many."""
    cut_tokens: int = 0
    """Tokens behind the end of cut rows, and of rows dropped with their tokens."""
    notes: Counter[str] = field(default_factory=Counter)
    proven: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    terminators: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Dropped rows that the recipe does not allow to drop, by reason."""
    refused_rows: list[Dropped] = field(default_factory=list)

    def add(self, row: Tokenized) -> None:
        """Count the outcome of a row."""
        result = row.result
        if isinstance(result, Dropped):
            self.cut_tokens += row.full_tokens
            self.drop(result)
            return
        self.proven += 1
        self.methods.update(row.methods)
        self.terminators.update(row.terminators)
        if result.notes:
            self.notes.update(re.sub(r"^truncated .*", "truncated", text) for text in result.notes)
        if row.full_tokens > len(result):
            self.truncated += 1
            self.cut_tokens += row.full_tokens - len(result)
            if len(self.truncated_rows) < _LISTED_ROWS:
                self.truncated_rows.append((result.ref, f"truncated {row.full_tokens} -> {len(result)}"))

    def drop(self, item: Dropped) -> None:
        """Count a row that is not used."""
        self.dropped[item.reason] += 1
        self.by_source[f"{item.ref.source}:{item.reason}"] += 1
        if len(self.dropped_rows) < _LISTED_ROWS:
            self.dropped_rows.append(item)
        if _is_refused(item, self.section):
            self.refused[item.reason] += 1
            if len(self.refused_rows) < _LISTED_PROBLEMS:
                self.refused_rows.append(item)

    def drop_all(self, items: Iterable[Dropped]) -> None:
        """`drop` for several."""
        for item in items:
            self.drop(item)

    def raise_refused(self) -> None:
        """Report all rows that the recipe does not allow to drop.

        Raises:
            DataError: there are some.
        """
        if not self.refused:
            return
        problems = [
            Problem(code=_CODES[item.reason], message=item.detail, file=item.ref.file, line=item.ref.line,
                    hint=_HINTS[item.reason])
            for item in self.refused_rows
        ]  # fmt: skip
        if (total := self.refused.total()) > len(problems):
            counts = ", ".join(f"{count:,} {reason}" for reason, count in self.refused.items())
            message = f"{total:,} rows cannot be used ({counts}); the first {len(problems)} are listed"
            problems.append(Problem(code="D224", message=message))
        raise DataError(problems=problems)

    def mask_proof(self) -> dict[str, Any]:
        """Rows and turns whose trained text was shown to be what is served, and the tokens that end the turns."""
        return {
            "rows": self.proven,
            "turns": self.methods.total(),
            "methods": dict(self.methods),
            "end_of_turn": dict(self.terminators),
        }


def _is_refused(item: Dropped, section: DataSection) -> bool:
    # A row whose answer was cut off is the doing of `overlong: truncate`, which the recipe asked for.
    if item.detail.startswith("cut at"):
        return False
    if item.reason in {"empty", "equal"}:
        return section.on_empty == "error"
    return item.reason in {"unprovable", "control_token"} or (item.reason, section.overlong) == ("overlong", "error")
