"""Tokenised rows on disk: written once, one after the other, read one by one from a memory map.

    ids.bin      token ids of all rows end to end, uint16 where the vocabulary allows, else int32
    runs.bin     loss weights as runs of (tokens, weight): a chat of two turns has four
    rows.bin     one record for each row that was read, used or not: where its ids and runs begin, how many they are,
                 source, file and line, notes, and the hash of its content
    about.json   the sizes and hashes of these, the texts of notes, what was counted

A row costs 66 bytes beside its ids (2 or 4 bytes each) and runs (8 bytes each). In memory there are, of each row that
is used, its length, its number of trained tokens and its place: 16 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from luthier.data.types import Example, RowRef
from luthier.runtime.hashing import Hasher, hash_file

__all__ = ["RECORD", "HexHashes", "RowStore", "RowWriter", "StoredRows", "is_whole"]

RECORD = np.dtype([
    ("ids", "<i8"), ("runs", "<i8"), ("line", "<i8"), ("tokens", "<i4"), ("trained", "<i4"), ("run_count", "<i4"),
    ("file", "<i4"), ("note", "<i4"), ("source", "<i2"), ("hash", "V16"),
])  # fmt: skip
"""`tokens` 0: the row is not used."""
_RUN = np.dtype([("tokens", "<i4"), ("weight", "<f4")])
_NAMES = ("ids.bin", "runs.bin", "rows.bin")
_BUFFERED_ROWS = 4_096
_UINT16 = 1 << 16


class RowWriter:
    """Writes rows into a folder; `close` gives what `RowStore` needs to read them.

    Args:
        folder: An empty folder.
        vocabulary: Ids are below this.
        names: Files that the rows come from, as messages call them.
    """

    def __init__(self, folder: Path, *, vocabulary: int, names: Sequence[str]) -> None:
        self._type = "<u2" if vocabulary <= _UINT16 else "<i4"
        self._files = [(folder / name).open("wb") for name in _NAMES]
        self._hashes = [Hasher() for _ in _NAMES]
        self._sizes = [0, 0, 0]
        self._ids: list[Any] = []
        self._runs: list[tuple[int, float]] = []
        self._records: list[tuple[Any, ...]] = []
        self._next_id = self._next_run = 0
        self._texts: dict[tuple[str, ...], int] = {}
        self._names = {name: place for place, name in enumerate(names)}

    def used(self, row: Example, content: str) -> None:
        """Add a row that is used; `content` is its hash."""
        weights = np.asarray(row.weights, np.float32)
        starts = np.flatnonzero(np.diff(weights, prepend=np.nan))  # NaN differs from everything, itself included
        sizes = np.diff(starts, append=len(weights))
        self._records.append((
            self._next_id, self._next_run, row.ref.line, len(weights), int(np.count_nonzero(weights)), len(starts),
            self._name(row.ref.file), self._texts.setdefault(tuple(row.notes), len(self._texts)), row.ref.source,
            bytes.fromhex(content),
        ))  # fmt: skip
        self._ids.append(np.asarray(row.ids, self._type))
        self._runs += zip(sizes.tolist(), weights[starts].tolist(), strict=True)
        self._next_id += len(weights)
        self._next_run += len(starts)
        self._flush_if_full()

    def dropped(self, ref: RowRef, content: str) -> None:
        """Add a row that is not used."""
        self._records.append((0, 0, ref.line, 0, 0, 0, self._name(ref.file), 0, ref.source, bytes.fromhex(content)))
        self._flush_if_full()

    def _name(self, file: str) -> int:
        return self._names[file]

    def _flush_if_full(self) -> None:
        if len(self._records) >= _BUFFERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        ids = np.concatenate(self._ids) if self._ids else np.zeros(0, self._type)
        pieces = (ids, np.array(self._runs, _RUN), np.array(self._records, RECORD))
        for place, piece in enumerate(pieces):
            data = piece.tobytes()
            self._files[place].write(data)
            self._hashes[place].update(data)
            self._sizes[place] += len(data)
        self._ids, self._runs, self._records = [], [], []

    def close(self) -> dict[str, Any]:
        """Finish the files."""
        self._flush()
        for file in self._files:
            file.close()
        return {
            "id_type": self._type,
            "files": {name: {"bytes": self._sizes[place], "hash": self._hashes[place].hash()}
                      for place, name in enumerate(_NAMES)},
            "texts": [list(text) for text in self._texts],
        }  # fmt: skip

    def abandon(self) -> None:
        """Close the files of an entry that will not be finished."""
        for file in self._files:
            file.close()


class RowStore:
    """Rows in a folder that `RowWriter` wrote.

    Args:
        folder: The folder.
        about: What `close` gave.
        names: How messages call the files today, in the order that `RowWriter` was given; they may have moved since.
    """

    def __init__(self, folder: Path, about: dict[str, Any], names: Sequence[str]) -> None:
        self._names = list(names)
        self._texts = [tuple(text) for text in about["texts"]] or [()]
        self._ids = _mapped(folder / "ids.bin", np.dtype(about["id_type"]))
        self._runs = _mapped(folder / "runs.bin", _RUN)
        self._rows = _mapped(folder / "rows.bin", RECORD)

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> npt.NDArray[Any]:
        """One field of all records, in memory."""
        return np.ascontiguousarray(self._rows[name])

    def hashes(self, rows: npt.NDArray[np.int64]) -> HexHashes:
        """Content hashes of some rows, as text, one at a time."""
        return HexHashes(np.ascontiguousarray(self._rows["hash"][rows]))

    def ref(self, row: int) -> RowRef:
        """Where a row came from."""
        record = self._rows[row]
        return RowRef(self._names[record["file"]], int(record["line"]), int(record["source"]))

    def example(self, row: int) -> Example:
        """A row that is used."""
        record = self._rows[row]
        first, run = int(record["ids"]), int(record["runs"])
        ids = self._ids[first : first + int(record["tokens"])].astype(np.int32)
        runs = self._runs[run : run + int(record["run_count"])]
        weights = np.repeat(runs["weight"], runs["tokens"])
        return Example(
            ids=array("i", ids.tobytes()), weights=array("f", weights.tobytes()), ref=self.ref(row),
            notes=self._texts[record["note"]],
        )  # fmt: skip


class HexHashes(Sequence[str]):
    """Hashes of 16 bytes each, as text when asked for."""

    def __init__(self, raw: npt.NDArray[Any]) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> HexHashes: ...
    def __getitem__(self, index: int | slice) -> str | HexHashes:
        if isinstance(index, slice):
            return HexHashes(self._raw[index])
        return bytes(self._raw[index]).hex()


class StoredRows(Sequence[Example]):
    """Some rows of a store, read when they are asked for; one may stand several times."""

    def __init__(self, store: RowStore, rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32],
                 trained: npt.NDArray[np.int32]) -> None:  # fmt: skip
        self._store, self._rows = store, rows
        self.lengths = lengths
        """Tokens of each row."""
        self.trained = trained
        """Trained tokens of each row."""

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...
    def __getitem__(self, index: int | slice) -> Example | StoredRows:
        if isinstance(index, slice):
            return StoredRows(self._store, self._rows[index], self.lengths[index], self.trained[index])
        return self._store.example(int(self._rows[index]))

    def __iter__(self) -> Iterator[Example]:
        return map(self._store.example, map(int, self._rows))


def _mapped(file: Path, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """The file as an array that is read from disk as it is used; an empty file cannot be mapped."""
    if file.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.memmap(file, kind, mode="r")


def is_whole(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the files are those that were written."""
    try:
        return all(
            (folder / name).stat().st_size == said["bytes"] and hash_file(folder / name) == said["hash"]
            for name, said in about["files"].items()
        )
    except OSError:
        return False
