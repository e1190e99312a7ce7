"""Pages of a view: filter, search, sort, show."""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.report.read import printable
from luthier.runtime.errors import RecipeError
from luthier.studio.clean import clean
from luthier.studio.data.stored import SPLITS, StoredView, preview_of

__all__ = ["SORTS", "AskedPage", "View"]

SORTS = ("row", "tokens", "trained", "trained_fraction")
_KEPT = 32
"""Orders of rows that are remembered: the next page of the same question is a cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPage:
    """A question about rows."""

    offset: int = 0
    limit: int = 50
    q: str = ""
    chips: tuple[str, ...] = ()
    sort: str = "row"


class View:
    """Answers questions about a stored view. Any thread."""

    def __init__(self, stored: StoredView) -> None:
        self.stored = stored
        self._orders: OrderedDict[tuple[Any, ...], npt.NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()
        self._starts: list[int] = stored.columns["at.search"].tolist()
        """Where each row's text begins; a search of a word that stands everywhere asks a hundred thousand times."""

    def summary(self, more_chips: str) -> dict[str, Any]:
        """What is said of all rows."""
        found = {**self.stored.about["summary"], "chips": clean(self.stored.about["chips"])}
        return {**found, "more_chips": "done" if found["more_chips"] == "done" else more_chips}

    # -- rows

    def page(self, asked: AskedPage) -> dict[str, Any]:
        """Some rows in order.

        Raises:
            RecipeError: W103: an unknown chip or order.
        """
        order = self._order(asked)
        rows = [int(row) for row in order[asked.offset : asked.offset + asked.limit]]
        records = self.stored.records(rows)
        lines = [self._line(row, record) for row, record in zip(rows, records, strict=True)]
        return {"total": len(order), "offset": asked.offset, "limit": asked.limit, "rows": lines}

    def head(self, row: int, record: dict[str, Any]) -> dict[str, Any]:
        """What every look at a row begins with."""
        columns = self.stored.columns
        tokens, trained = int(columns["tokens"][row]), int(columns["trained"][row])
        return {
            "row": row, "ref": printable(self._shown(row)), "split": SPLITS[int(columns["split"][row])],
            "source": self._source(int(columns["source"][row])),
            "tokens": tokens if tokens >= 0 else None, "trained": trained if tokens >= 0 else None,
            "trained_fraction": trained / tokens if tokens > 0 else None,
            "chips": [key for key, mask in self.stored.chips.items() if mask[row]],
            "why": printable(record["w"]) or None,
        }  # fmt: skip

    def check_row(self, text: str) -> int:
        """A row's number from a path.

        Raises:
            RecipeError: W131: there is no such row.
        """
        if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) >= len(self.stored):
            raise RecipeError(
                code="W131", message=f"there is no row {text[:20]!r}: rows go from 0 to {len(self.stored) - 1:,}"
            )
        return int(text)

    def _line(self, row: int, record: dict[str, Any]) -> dict[str, Any]:
        turns = record["t"]
        return self.head(row, record) | {"preview": printable(preview_of(turns)), "turns": len(turns)}

    def _shown(self, row: int) -> str:
        """File and line; a file by its name as the view was asked for, never by a path of this machine."""
        ref = self.stored.ref(row)
        return f"{self._file(ref.file)}:{ref.line}"

    def _file(self, file: str) -> str:
        asked = self.stored.about["asked"]
        if asked["kind"] == "file" and file == asked["path"]:
            return str(asked["shown"])
        below = file.removeprefix(f"{asked['root']}/")
        return below.rpartition("/")[2] if below.startswith("/") else below

    def _source(self, number: int) -> str:
        return printable(self._file(str(self.stored.about["sources"][number])))

    # -- order

    def _order(self, asked: AskedPage) -> npt.NDArray[np.int64]:
        unknown = [key for key in asked.chips if key not in self.stored.chips]
        name = asked.sort.removeprefix("-")
        if unknown or name not in SORTS:
            what = f"chip: there is no {unknown[0][:40]!r}" if unknown else f"sort must be one of {', '.join(SORTS)}"
            raise RecipeError(code="W103", message=what)
        key = (asked.q, asked.chips, asked.sort)
        with self._lock:
            known = self._orders.get(key)
        if known is not None:
            return known
        found = self._sorted(self._matching(asked), name, descending=asked.sort.startswith("-"))
        with self._lock:
            self._orders[key] = found
            while len(self._orders) > _KEPT:
                self._orders.popitem(last=False)
        return found

    def _matching(self, asked: AskedPage) -> npt.NDArray[np.int64]:
        mask = np.ones(len(self.stored), bool)
        for key in asked.chips:
            mask &= self.stored.chips[key]
        for word in asked.q.lower().split():
            mask &= self._with(word)
        return np.flatnonzero(mask)

    def _with(self, word: str) -> npt.NDArray[np.bool_]:
        """Rows whose text has a word; the text is searched where it lies on disk."""
        starts = self._starts
        mask = bytearray(len(self.stored))
        needle = word.encode("utf-8", "replace")
        file = self.stored.folder / "search.txt"
        if not needle or not file.stat().st_size:
            return np.frombuffer(mask, np.bool_)
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            at = view.find(needle)
            while at >= 0:
                row = bisect_right(starts, at) - 1
                mask[row] = 1
                at = view.find(needle, starts[row + 1])
        return np.frombuffer(mask, np.bool_)

    def _sorted(self, rows: npt.NDArray[np.int64], name: str, *, descending: bool) -> npt.NDArray[np.int64]:
        """Stable; rows without the value last both ways."""
        if name == "row":
            return rows[::-1] if descending else rows
        columns = self.stored.columns
        values = columns["trained" if name == "trained_fraction" else name][rows].astype(np.float64)
        if name == "trained_fraction":
            values = values / np.maximum(columns["tokens"][rows], 1)
        missing = columns["tokens"][rows] < 0
        values = np.where(missing, np.inf, -values if descending else values)
        ordered: npt.NDArray[np.int64] = rows[np.argsort(values, kind="stable")]
        return ordered

    # -- packs

    def pack_page(self, offset: int, limit: int) -> dict[str, Any]:
        """Training sequences."""
        numbers = range(self.stored.pack_count)[offset : offset + limit]
        return {"total": self.stored.pack_count, "offset": offset, "limit": limit,
                "packs": [self.pack_line(number) for number in numbers]}  # fmt: skip

    def pack_line(self, number: int) -> dict[str, Any]:
        """One of them."""
        rows = self.stored.pack(number)
        columns = self.stored.columns
        return {
            "pack": number, "rows": rows, "refs": [printable(self._shown(row)) for row in rows],
            "tokens": _total(columns["tokens"], rows), "trained": _total(columns["trained"], rows),
            "capacity": int(self.stored.about["summary"]["pack_capacity"] or 0),
        }  # fmt: skip

    def check_pack(self, text: str) -> int:
        """A pack's number from a path.

        Raises:
            RecipeError: W131: there is no such pack.
        """
        if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) >= self.stored.pack_count:
            count = self.stored.pack_count
            raise RecipeError(code="W131", message=f"there is no pack {text[:20]!r}: there are {count:,}")
        return int(text)


def _total(column: npt.NDArray[Any], rows: Sequence[int]) -> int:
    return int(column[list(rows)].sum()) if rows else 0
